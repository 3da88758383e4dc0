"""The paper's figures on a model that a CPU can run: named experiments and their page."""
