from tests.cli.toolbox import fail, misuse, run, run_json

__all__ = ["fail", "misuse", "run", "run_json"]
