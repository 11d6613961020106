"""The synthetic population's chain with three free texts: amid judged slots, in a line of its own, and by a stem."""

import yaml

from scaletot_jax.chains.spec import load_spec, parse_spec


def content():
    made = load_spec("synthetic").model_dump(mode="json", exclude_defaults=True)
    made["name"] = "with_texts"
    for segment in made["segments"]:
        if segment["name"] == "context":
            note = {"name": "note", "source": "free", "max_tokens": 10, "unknown_when_missing": ["city"]}
            segment["slots"].insert(1, note)
        if segment["name"] == "outlook":
            segment["slots"].append({"name": "why", "source": "free", "max_tokens": 10, "stems": ["because of"]})
    remark = {"name": "remark", "source": "free", "max_tokens": 8}
    made["segments"].append({"name": "remark", "title": "Remark", "slots": [remark]})
    return made


def spec():
    return parse_spec(content(), where="free_spec")


def write_spec(folder):
    path = folder / "with_texts.yaml"
    path.write_text(yaml.safe_dump(content(), sort_keys=False))
    return path
