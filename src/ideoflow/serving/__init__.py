"""The server: jobs, pictures and the studio page over HTTP, around one engine."""

from importlib.util import find_spec

_missing = [
    name
    for name in ("fastapi", "uvicorn", "sqlalchemy", "prometheus_client", "python_multipart")
    if find_spec(name) is None
]
if _missing:
    raise ImportError(
        f'The server needs {", ".join(_missing)}, not installed here: pip install "ideoflow[serve]"', name=_missing[0]
    )
