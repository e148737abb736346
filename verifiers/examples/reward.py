"""A reward function for `verifier = { name = "process", command = ["python3", "reward.py"] }`."""
import json, sys

for line in sys.stdin:
    request = json.loads(line)
    results = []
    for item in request["items"]:
        right = item["reply"].strip() == request["reference"].strip()
        results.append({"reward": float(right), "outcome": "correct" if right else "incorrect"})
    print(json.dumps({"id": request["id"], "results": results}), flush=True)
