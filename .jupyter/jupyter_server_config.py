"""JupyterLab as `make lab` starts it: what is saved is what was edited."""

c = get_config()  # noqa: F821


def keep_edits_alone(model: dict, **_: object) -> None:
    """Leave out what a kernel says of its Python, which differs from one machine to the next."""
    if model.get("type") == "notebook":
        model["content"]["metadata"]["language_info"] = {"name": "python"}


c.FileContentsManager.pre_save_hook = keep_edits_alone
