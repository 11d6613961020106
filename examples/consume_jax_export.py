"""Scores profiles with an exported model.jax_export. Needs NumPy and jax (with flatbuffers), nothing of scaletot_jax.

python consume_jax_export.py MODEL_DIR < profiles.jsonl    # one JSON object a line: field -> value, null where not known
"""

import json
import sys

from encode_profiles import encode, open_program
from jax import export

says, program = open_program(sys.argv[1], "model.jax_export")
profiles = [json.loads(line) for line in sys.stdin]
answer = export.deserialize(bytearray(program)).call(*encode(says, profiles).values())
for i in range(len(profiles)):
    print(json.dumps({name: value[i].tolist() for name, value in answer.items()}))
