"""Word lists for keys, values and made-up facts; a fifth of each is kept for held-out prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")
SPLITS = ("train", "heldout")
HELDOUT_SHARE = 0.2


def split_of(name: str) -> str:
    """``train`` or ``heldout`` (a fifth), from the name alone: the same in every process."""
    digest = hashlib.sha256(name.encode()).digest()
    return "heldout" if digest[0] < 256 * HELDOUT_SHARE else "train"


def words_of(split: str, words: Iterable[str]) -> tuple[str, ...]:
    """The words that belong to ``split``."""
    return tuple(word for word in words if split_of(word) == split)


def every_fifth(split: str, items: tuple[T, ...]) -> tuple[T, ...]:
    """Items 4, 9, 14 ... for ``heldout``, all others for ``train``."""
    return tuple(item for i, item in enumerate(items) if (i % 5 == 4) == (split == "heldout"))


def _listed(text: str, separator: str | None = None) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(" ".join(word.split()) for word in text.split(separator))


ADJECTIVES = _listed(
    """
    able absent abstract actual adept agile alert alpine amber amused ancient annual apt arctic
    ardent arid atomic autumn awake aware azure basic bold bouncy brave breezy bright brisk
    broad bronze bubbly busy calm candid careful casual caring cheerful chief chilly civic
    classic clean clear clever cloudy coastal cold comic common compact complex coral cosmic
    cozy crisp cubic curious curly cyan daily dapper daring dazzling decent deep delicate dense
    digital dim direct distant dizzy double dreamy dry dusty eager early earnest earthy eastern
    easy elastic elegant empty endless epic equal exact exotic faint fair faithful famous fancy
    fast feisty fierce final firm flat floral fluent fluffy foggy formal fragile frank fresh
    frosty frozen full funny fuzzy gentle giant gifted glad gleaming global glossy golden
    graceful grand grateful gray green grim handy happy hardy hasty hazy heavy hidden hollow
    honest humble humid hungry icy ideal idle immense indigo inner ivory jagged jolly jovial
    joyful juicy keen kind large lavish lazy lean legal light likely linear liquid little lively
    local lofty lonely long loud lovely lucid lucky lunar magenta major maple marine massive
    mellow merry mighty mild minor misty modern modest moist mossy muddy murky musical mute
    narrow native neat nimble noble noisy northern novel odd olive opaque orange orderly ornate
    outer oval pale patient peaceful placid plain polar polite porous precise pretty prime
    private proud public purple quaint quick quiet quirky rapid rare ready regal remote rich
    rigid ripe robust rocky rosy rough round royal rugged rural rustic sacred salty sandy savvy
    scarlet secret serene shady sharp shiny short shy silent silky silver simple sleek slim slow
    smart smoky smooth snowy soft solar solemn solid sonic sour southern spare spicy spiral
    square stable stark steady steep stern stiff still stormy stout strict strong sturdy subtle
    sudden sunny super swift tall tame tangy tart tender tense thick thin thirsty tidy timid
    tiny tired topaz tough tranquil tricky tropical trusty turquoise typical ultra upbeat upper
    urban useful valid vast velvet verdant violet vital vivid warm wary wavy weary western
    whimsical white wide wild windy wintry wise witty wooden woolly worthy yellow young zany
    zealous zesty
    """
)
NOUNS = _listed(
    """
    abbey acorn actor adapter airport album alley almanac anchor angle ankle antler anvil apple
    apron arch archive arena armor arrow artist atlas attic aunt avenue axle badge badger bagel
    bakery balcony ballad balloon banana banjo banner barley barn barrel basin basket beach
    beacon bead beaver beetle bell bench berry bicycle bishop blanket blossom boat bonfire book
    boot bottle boulder bowl box bracelet bramble branch bread brick bridge broom brush bucket
    buckle buffalo bugle bunker button cabin cabinet cactus cafe cake camel camera canal candle
    canoe canvas canyon caravan cargo carpet carriage carrot cart castle cathedral cedar cellar
    chain chair chalk channel chapel charm chart cheese cherry chess chest chimney circle circus
    citizen clarinet cliff clinic cloak clock cloud clover coach coast coconut coffee coin
    collar column comet compass concert copper corridor cottage cotton cradle crane crater creek
    cricket crown crystal cup cupboard curtain cushion dagger dairy daisy dancer desert desk
    diamond diary dinner doctor dolphin donkey door dragon drawer dress drum duck dune eagle
    easel echo elbow elephant ember emperor engine envelope fabric factory falcon farm feather
    fence fern ferry festival fiddle field finch firefly flag flame flask flute forest forge
    fossil fountain fox frame galaxy gallery garden garlic gate gazelle geyser ginger giraffe
    glacier glade glove goat goblet gorge grain granite grape grove guitar hammer hammock harbor
    harp harvest hawk hazel hedge helmet heron hill hinge honey horizon horn horse hotel island
    jacket jar jaguar jasmine jewel journal jungle kayak kernel kettle key kiosk kitchen kite
    kitten ladder lagoon lake lamp lantern lark laundry lavender leaf ledger lemon lens leopard
    letter library lighthouse lily lion lizard lobster locket lodge loom lotus lynx magnet mango
    mansion map marble market marsh mask meadow medal melody menu mill mint mirror mitten monkey
    monument moon moose mosaic moth mountain mug museum mushroom napkin needle nest notebook
    nutmeg oak oasis oboe ocean orchard orchid organ otter oven owl oyster paddle pagoda paint
    palace palm panther paper parade parcel park parrot pasture path pavilion peach pearl pebble
    pelican pencil pepper piano picnic pigeon pillow pilot pine pirate planet plaza plum pocket
    pond poppy porch portrait postcard potato pottery prairie prism puddle pumpkin puppet
    pyramid quail quarry quartz quilt rabbit radio raft railway rainbow raven reef ribbon ridge
    river robin rocket roof rooster rope rose rudder saddle sail salmon sandal satchel saucer
    scarf school scooter sculptor seal shed shelf shell shield shore shovel signal skate sketch
    sled smith snail socket sofa sparrow spear spider spoon spruce squirrel stable stadium
    staircase station statue stove stream studio suitcase summit sundial swan sword table tailor
    teapot telescope temple tent terrace theater thimble thistle throne thunder ticket tiger
    toast torch tower tractor trail train treasure trumpet trunk tulip tunnel turtle umbrella
    valley vase vault village vineyard violin volcano wagon wallet walnut walrus waterfall
    weasel whale wharf wheel whistle willow window wizard wolf workshop wreath yacht yarn zebra
    zephyr
    """
)
NAMES = _listed(
    """
    Ada Adrian Agnes Aiko Alba Alden Amara Amir Anika Anton Arlo Astrid Basil Beatrix Bela Bruno
    Callum Carmen Cedric Clara Cyrus Dahlia Damon Daphne Delia Desmond Dora Edith Edgar Elena
    Elio Elsa Emeka Enzo Erik Esme Ezra Farah Felix Fiona Flora Freya Gideon Greta Gustav Hana
    Harvey Hazel Hector Helga Hugo Ida Ignatius Imani Ines Ingrid Iris Isaac Ivan Jada Jasper
    Joan Jonas Julian June Kaito Karim Keiko Kofi Lars Leila Leon Linnea Lorenzo Lucia Mabel
    Malik Marco Marta Matteo Maya Milo Mira Nadia Naomi Nils Noor Odette Olaf Omar Otis Paloma
    Pavel Pedro Petra Priya Quentin Rafael Ramona Ravi Rosa Rufus Sana Selma Silas Simone Stella
    Sven Tamar Tariq Tessa Theo Thora Tobias Uma Ursula Victor Viola Wanda Wendell Xavier Yara
    Yusuf Zelda
    """
)
COLOURS = _listed(
    """
    red blue green yellow purple orange pink brown black white gray turquoise crimson silver
    golden beige maroon navy teal violet scarlet amber
    """
)
CITIES = _listed(
    """
    Lisbon Oslo Cairo Dublin Havana Nairobi Vienna Prague Athens Berlin Madrid Warsaw Helsinki
    Toronto Seattle Denver Boston Chicago Montreal Lima Bogota Quito Santiago Seoul Tokyo Osaka
    Hanoi Bangkok Jakarta Manila Sydney Perth Auckland Mumbai Delhi Dhaka Tunis Dakar Accra
    Lagos Zagreb Riga Vilnius Tallinn Geneva Zurich Milan Naples Venice Porto Seville Lyon
    Marseille
    """
)
PLACES = _listed(
    """
    kitchen drawer; garden shed; old attic; glove box; top shelf; wooden chest; school locker;
    music room; boat house; cellar; guest room; green cupboard; piano bench; bread box; tool
    box; laundry basket; flower pot; mail room; reading corner; hall closet; bicycle basket;
    fish tank; filing cabinet; tea tin; coat pocket; storage unit; office safe; clock tower;
    bottom drawer; train station locker; violin case; hollow tree; picnic basket; back of the
    van; wine rack; jewellery box; sewing kit; cookie jar; greenhouse; umbrella stand; desk in
    the study
    """,
    ";",
)
JOBS = _listed(
    """
    baker plumber teacher violinist surgeon carpenter pilot journalist gardener chemist lawyer
    librarian photographer farmer translator electrician dentist architect nurse sailor potter
    beekeeper tailor geologist welder judge painter fisherman barber astronomer
    """
)
FOODS = _listed(
    """
    mango papaya cherry melon apricot coconut lasagna ramen pancakes dumplings risotto goulash
    falafel curry paella pizza sushi waffles lentils pumpkin cheesecake gnocchi tacos porridge
    hummus omelette figs dates walnuts blueberries
    """
)
MONTHS = _listed(
    """
    January February March April May June July August September October November December
    """
)
