"""``scaletot serve``: an exported model behind HTTP, with micro-batches of fixed shapes, limits, and reload under load."""
