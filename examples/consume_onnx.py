"""Scores profiles with an exported model.onnx. Needs NumPy and onnxruntime, nothing of scaletot_jax.

python consume_onnx.py MODEL_DIR < profiles.jsonl    # one JSON object a line: field -> value, null where not known
"""

import json
import sys

import onnxruntime
from encode_profiles import encode, open_program

says, program = open_program(sys.argv[1], "model.onnx")
profiles = [json.loads(line) for line in sys.stdin]
inputs = encode(says, profiles)
session = onnxruntime.InferenceSession(program, providers=["CPUExecutionProvider"])
names = [output.name for output in session.get_outputs()]
answer = dict(zip(names, session.run(names, {item.name: inputs[item.name] for item in session.get_inputs()})))
for i in range(len(profiles)):
    print(json.dumps({name: value[i].tolist() for name, value in answer.items()}))
