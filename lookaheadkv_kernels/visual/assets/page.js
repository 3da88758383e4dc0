"use strict";
(() => {
  const ROWS_HEIGHT = 96; // of the map of all heads, in CSS pixels
  const BARS_HEIGHT = 30; // of the histogram below it
  const MARKS_HEIGHT = 6; // of the band above it that shows where the marks are
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const LEVELS = data.levels;
  const rowsPerPolicy = data.layers * data.heads;

  const bytesOf = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const percent = (share) => `${share > 0 && share < 0.1 ? (100 * share).toPrecision(2) : Math.round(100 * share)} %`;
  const number = (n) => n.toLocaleString("en");

  // Colours and sizes are read before anything changes: reading them later would make the browser
  // lay the whole text out in between.
  const theme = {};
  const readTheme = () => {
    const style = getComputedStyle(document.documentElement);
    for (const name of ["panel", "line", "here", "k6", "m0", "m1", "m2"]) {
      theme[name] = style.getPropertyValue(`--${name}`).trim();
    }
  };

  // --- What was kept ---

  function unpack(policy) {
    const bytes = bytesOf(policy.positions);
    policy.positions = data.wide ? new Uint32Array(bytes.buffer) : new Uint16Array(bytes.buffer);
    policy.scores = policy.scores && bytesOf(policy.scores);
    policy.starts = [0];
    for (const count of policy.counts) policy.starts.push(policy.starts.at(-1) + count);
  }

  /** The rows of the selected layers and heads. */
  function selectedRows() {
    const layer = Number(byId("layer").value);
    const head = Number(byId("head").value);
    const rows = [];
    for (let row = 0; row < rowsPerPolicy; row++) {
      if (layer >= 0 && Math.floor(row / data.heads) !== layer) continue;
      if (head >= 0 && row % data.heads !== head) continue;
      rows.push(row);
    }
    return rows;
  }

  /** For each token: the share of the rows that keep it, and its mean score over all of them. */
  function summarise(policy, rows) {
    const share = new Float32Array(data.tokens);
    const score = new Float32Array(data.tokens);
    for (const row of rows) {
      for (let at = policy.starts[row]; at < policy.starts[row + 1]; at++) {
        const position = policy.positions[at];
        share[position] += 1 / rows.length;
        if (policy.scores && policy.scores[at] < 255) {
          score[position] += 2 ** (-policy.scores[at] / data.stepsPerHalving) / rows.length;
        }
      }
    }
    return { share, score, best: score.reduce((a, b) => Math.max(a, b), 0) };
  }

  /** 0 where no head keeps it, else 1 to LEVELS: by the root of the share, or by quarters of the best score. */
  function levelOf(summary, token, byScore) {
    const share = summary.share[token];
    if (share === 0) return 0;
    if (!byScore) return Math.min(LEVELS, Math.ceil(LEVELS * Math.sqrt(share) - 1e-3));
    const score = summary.score[token];
    return score > 0 ? Math.max(1, LEVELS + Math.ceil(Math.log2(score / summary.best) / 2 - 1e-3)) : 1;
  }

  // --- Columns ---

  const columns = [...document.querySelectorAll("main > section")].map((section, index) => ({
    section,
    policy: data.policies[index],
    text: section.querySelector(".text"),
    facts: section.querySelector(".facts"),
    canvas: section.querySelector("canvas"),
  }));
  const firstTokens = []; // of each piece, and the end of the last
  let here = -1; // the piece that is pointed at

  function build() {
    data.policies.forEach(unpack);
    const template = document.createDocumentFragment();
    for (const node of columns[0].text.childNodes) template.append(node.cloneNode(true));
    for (const column of columns) {
      if (column !== columns[0]) column.text.append(template.cloneNode(true));
      column.pieces = [...column.text.querySelectorAll("i")];
      column.levels = new Uint8Array(column.pieces.length);
      column.pieces.forEach((piece, index) => { piece.index = index; });
    }
    let token = 0;
    for (const piece of columns[0].pieces) {
      firstTokens.push(token);
      token += Number(piece.dataset.n || 1);
    }
    firstTokens.push(token);
  }

  /** The largest value among a piece's tokens. */
  function overPiece(piece, valueOf) {
    let best = 0;
    for (let token = firstTokens[piece]; token < firstTokens[piece + 1]; token++) {
      best = Math.max(best, valueOf(token));
    }
    return best;
  }

  function pieceOf(token) {
    let low = 0;
    let high = firstTokens.length - 2;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (firstTokens[middle] <= token) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  function paintText(column, byScore) {
    column.pieces.forEach((piece, index) => {
      const level = overPiece(index, (token) => levelOf(column.summary, token, byScore));
      if (level === column.levels[index]) return;
      column.levels[index] = level;
      const cursor = index === here ? " here" : "";
      piece.className = level ? `k${level}${cursor}` : cursor.trim();
    });
  }

  function writeFacts(column, rows) {
    const kept = rows.map((row) => column.policy.counts[row]);
    const [least, most] = [Math.min(...kept), Math.max(...kept)];
    const amount = least === most ? number(most) : `${number(least)} to ${number(most)}`;
    const facts = [`keeps ${amount} of ${number(data.tokens)} a head`];
    for (const label of new Set(data.marks.map((mark) => mark.label))) {
      let [sum, length] = [0, 0];
      for (const mark of data.marks.filter((one) => one.label === label)) {
        length += mark.stop - mark.start;
        for (let token = mark.start; token < mark.stop; token++) sum += column.summary.share[token];
      }
      facts.push(`${label} ${percent(sum / length)}`);
    }
    column.facts.textContent = facts.join(" · ");
    column.facts.title = "Part of the selected heads' entries for the marked text that stays";
  }

  // --- Maps: one row per head, and below them the share of the selected heads that keeps a token ---

  function paintMap(column, rows) {
    const { canvas, policy, summary } = column;
    const scale = window.devicePixelRatio || 1;
    const width = Math.max(1, Math.round(column.width * scale));
    const [band, map, bars] = [MARKS_HEIGHT, ROWS_HEIGHT, BARS_HEIGHT].map((h) => Math.round(h * scale));
    const whole = band + map + bars;
    canvas.style.height = `${MARKS_HEIGHT + ROWS_HEIGHT + BARS_HEIGHT}px`;
    const picture = column.picture = document.createElement("canvas");
    picture.width = canvas.width = width;
    picture.height = canvas.height = whole;
    const context = picture.getContext("2d");
    const x = (token) => (token / data.tokens) * width;
    context.fillStyle = theme.panel;
    context.fillRect(0, band, width, map);
    for (const mark of data.marks) {
      const wide = Math.max(4 * scale, x(mark.stop) - x(mark.start));
      context.fillStyle = theme[`m${mark.colour}`];
      context.fillRect(x(mark.start), 0, wide, band - scale);
      context.globalAlpha = 0.28;
      context.fillRect(x(mark.start), band, wide, whole - band);
      context.globalAlpha = 1;
    }
    const dot = Math.max(1.5 * scale, width / data.tokens);
    context.drawImage(paintHeads(policy, rows, width, map, Math.ceil(dot)), 0, band);
    context.fillStyle = theme.k6;
    for (let token = 0; token < data.tokens; token++) {
      const bar = summary.share[token] * bars;
      if (bar > 0) context.fillRect(x(token), whole - bar, dot, bar);
    }
    context.fillStyle = theme.line;
    context.fillRect(0, band + map, width, 1);
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `Map of what ${policy.name} keeps; the text below has the same`);
    paintCursor(column);
  }

  /** The heads' rows, pixel by pixel: a long prompt has too many entries to draw one rectangle per entry. */
  function paintHeads(policy, rows, width, height, dot) {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [width, height];
    const context = canvas.getContext("2d");
    const image = context.createImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    const rgb = parseInt(theme.k6.slice(1), 16);
    const bgr = ((rgb & 255) << 16) | (rgb & 0xff00) | (rgb >> 16);
    const chosen = new Set(rows);
    const others = [...Array(rowsPerPolicy).keys()].filter((row) => !chosen.has(row));
    for (const row of [...others, ...rows]) { // the chosen on top, where rows share a pixel
      const colour = ((chosen.has(row) ? 255 : 56) << 24) | bgr;
      const first = Math.floor((row * height) / rowsPerPolicy);
      const end = Math.max(first + 1, Math.floor(((row + 1) * height) / rowsPerPolicy));
      for (let at = policy.starts[row]; at < policy.starts[row + 1]; at++) {
        const x = Math.floor((policy.positions[at] / data.tokens) * width);
        for (let y = first; y < end; y++) {
          pixels.fill(colour, y * width + x, y * width + Math.min(width, x + dot));
        }
      }
    }
    context.putImageData(image, 0, 0);
    return canvas;
  }

  function paintCursor(column) {
    const context = column.canvas.getContext("2d");
    const { width, height } = column.canvas;
    context.clearRect(0, 0, width, height);
    context.drawImage(column.picture, 0, 0);
    if (here < 0) return;
    context.fillStyle = theme.here;
    context.fillRect((firstTokens[here] / data.tokens) * width, 0, window.devicePixelRatio || 1, height);
  }

  // --- What is pointed at ---

  function point(index, reveal) {
    if (index < 0 || index >= columns[0].pieces.length) return;
    for (const column of columns) {
      column.pieces[here]?.classList.remove("here");
      column.pieces[index].classList.add("here");
    }
    here = index;
    columns.filter(isShown).forEach(paintCursor);
    if (reveal) {
      const shown = reveal === true ? columns.find(isShown) : reveal;
      shown?.pieces[index].scrollIntoView({ block: "center" });
    }
    describe();
  }

  function describe() {
    if (here < 0) return;
    const [first, end] = [firstTokens[here], firstTokens[here + 1]];
    const line = byId("token");
    const code = document.createElement("code");
    code.textContent = columns[0].pieces[here].textContent.replaceAll("\n", "");
    const place = end - first === 1 ? `token ${number(first)}` : `tokens ${number(first)} to ${number(end - 1)}`;
    line.replaceChildren(code, ` ${place} of ${number(data.tokens)}`);
    for (const column of columns.filter(isShown)) {
      const share = overPiece(here, (token) => column.summary.share[token]);
      const score = overPiece(here, (token) => column.summary.score[token]);
      const part = document.createElement("span");
      const known = score > 0 ? `, score ${score.toPrecision(2)}` : "";
      part.textContent = share > 0 ? `${column.policy.name} ${percent(share)}${known}` : `${column.policy.name} drops it`;
      line.append(part);
    }
  }

  const isShown = (column) => !column.section.hidden;

  // --- Controls ---

  function legend(byScore) {
    const swatches = [];
    for (let level = 1; level <= LEVELS; level++) {
      const swatch = document.createElement("i");
      swatch.className = `k${level}`;
      swatch.title = byScore
        ? `score up to ${percent(4 ** (level - LEVELS))} of the best`
        : `up to ${percent((level / LEVELS) ** 2)} of the selected heads keep it`;
      swatches.push(swatch);
    }
    const texts = (byScore ? ["low score", "high"] : ["few heads", "all"]).map((text) => {
      const part = document.createElement("span");
      part.textContent = text;
      return part;
    });
    byId("legend").replaceChildren(texts[0], ...swatches, texts[1]);
  }

  function update() {
    const rows = selectedRows();
    const byScore = byId("colour").value === "score";
    readTheme();
    for (const column of columns) column.width = column.canvas.clientWidth;
    legend(byScore);
    for (const column of columns) {
      column.summary = summarise(column.policy, rows);
      paintText(column, byScore);
      writeFacts(column, rows);
      if (isShown(column)) paintMap(column, rows);
    }
    describe();
  }

  function move(column, event) {
    const kept = (step) => {
      let index = here + step;
      while (column.levels[index] === 0) index += step;
      return index;
    };
    const steps = {
      ArrowRight: () => here + 1,
      ArrowLeft: () => here - 1,
      Home: () => 0,
      End: () => column.pieces.length - 1,
      n: () => kept(1),
      p: () => kept(-1),
    };
    if (!(event.key in steps) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    point(steps[event.key](), column);
  }

  build();
  for (const column of columns) {
    column.text.addEventListener("pointerover", (event) => {
      const piece = event.target.closest?.("i");
      if (piece) point(piece.index, false);
    });
    column.text.addEventListener("keydown", (event) => move(column, event));
    column.canvas.addEventListener("click", (event) => {
      const share = event.offsetX / column.canvas.clientWidth;
      point(pieceOf(Math.floor(share * data.tokens)), column);
    });
  }
  for (const id of ["layer", "head", "colour"]) byId(id).addEventListener("change", update);
  for (const box of document.querySelectorAll("input[data-policy]")) {
    box.addEventListener("change", () => {
      columns[Number(box.dataset.policy)].section.hidden = !box.checked;
      update();
    });
  }
  for (const button of document.querySelectorAll("button[data-to]")) {
    button.addEventListener("click", () => point(pieceOf(Number(button.dataset.to)), true));
  }
  let redraw = 0;
  const later = () => { cancelAnimationFrame(redraw); redraw = requestAnimationFrame(update); };
  window.addEventListener("resize", later);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", later);
  update();
})();
