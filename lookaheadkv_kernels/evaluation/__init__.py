"""Does the small cache still answer, and how close is it to the best one of its size?"""
