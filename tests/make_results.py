"""Results whose numbers are easy to check, for the tests of tables and figures."""


def make_result(name="full", seed=0, *, search=100.0, retraining=20.0, **changes):
    """A result whose numbers are easy to check: half of the search's gradients are solving."""
    result = {
        "command": f"python -m experiments.mnist --selection {name}",
        "commit": "0" * 40,
        "versions": {"python": "3.11.7"},
        "hardware": {"cpu": "a processor", "cores": 2},
        "seeds": {"search": seed},
        "scale": {"name": "laptop", "reduced": True, "description": "20,000 of 60,000 images"},
        "dataset": {"name": "mnist", "train": 18000, "validation": 2000, "test": 10000},
        "model": "LeNet",
        "strategy": {"name": name, "fraction": 1.0 if name == "full" else 0.05},
        "search": {"sampler": "tpe"},
        "trials": [
            {"number": 0, "state": "complete", "value": 0.95, "hyperparameters": {}},
            {"number": 1, "state": "complete", "value": 0.97, "hyperparameters": {}},
            {"number": 2, "state": "failed", "value": None, "hyperparameters": {}},
        ],
        "retraining": {"hyperparameters": {}, "test_accuracy": 0.99},
        "ledger": {
            "seconds": {
                "loading": 1.0,
                "compiling": 8.0,
                "gradients": 2.0,
                "solving": 1.0,
                "training": search - 11.0,
                "retraining": retraining,
            },
            "total_seconds": search + retraining + 1.0,
            "search_seconds": search,
            "search_compiling_seconds": 5.0,
            "retraining_seconds": retraining,
            "retraining_compiling_seconds": 3.0,
            "energy": {"joules": 1234.0, "method": "CPU: TDP × CPU load", "is_estimate": True},
        },
    }
    return result | changes


def make_study(seeds=1):
    searches = {"full": 100.0, "uniform": 10.0, "craig": 20.0, "glister": 16.0, "grad_match": 12.5}
    return [
        make_result(name, seed, search=search + seed, retraining=20.0 + 0.1 * seed)
        for name, search in searches.items()
        for seed in range(seeds)
    ]
