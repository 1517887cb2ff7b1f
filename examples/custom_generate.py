"""A drop-in for `model.generate` and pipelines: your own prompt and streamer, with tersely inside.

python examples/custom_generate.py
"""

from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer, pipeline

import tersely
from tersely.models import get_model_path

QUESTION = "Kai has 48 shells. Kai finds 31 shells. Count the shells that belong to Kai."

if __name__ == "__main__":
    folder = get_model_path("tersely-tiny-small")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    messages = [{"role": "user", "content": QUESTION}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    control = tersely.custom_generate(tokenizer, streamer=TextStreamer(tokenizer, skip_prompt=True))
    model.generate(**inputs, max_new_tokens=512, do_sample=False, custom_generate=control)
    (result,) = control.results
    print(f"{result.usage.total} tokens;", *(f"{d.policy}: {d.reason}" for d in result.trace))

    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
    control = tersely.custom_generate(tokenizer)
    reply = pipe(messages, max_new_tokens=512, do_sample=False, custom_generate=control)
    print("pipeline:", reply[0]["generated_text"][-1]["content"][-40:])
