"""The pages of the server: one to try the model, its OpenAPI description, and that description for people.

They are made once, from files of this package and the server's own limits; no page contacts anything but the server.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from finetune.export.web_page import WEB_FILES, render_page
from finetune.plain import Json
from finetune.terminal import printable
from finetune.versions import versions


@dataclass(frozen=True, kw_only=True)
class ServedPage:
    """A file that the server answers with.

    Args:
        content: Its bytes.
        media_type: Its media type.
    """

    content: bytes
    media_type: str


def render_pages(
    *,
    name: str,
    classes: Sequence[str],
    multi_label: bool,
    upload_bytes: int,
    top_k: int,
    tells_unknown: bool = False,
    card: str = "",
    address: str = "http://HOST:PORT",
) -> Mapping[str, ServedPage]:
    """Return the pages by their path.

    Args:
        name: Name of the model.
        classes: Class names.
        multi_label: Whether an image may show several classes.
        upload_bytes: Largest body of one request.
        top_k: Number of classes in each answer.
        tells_unknown: Whether the model tells images that are unlike the training images.
        card: Model card in Markdown; empty for none.
        address: Address of the server, for the lines to copy.
    """
    title = f"{printable(name)}, {len(classes)} classes"
    shown = [printable(one) for one in classes]
    where = "Images go to the server of this page, which keeps none."
    described = openapi(
        name=name,
        classes=classes,
        multi_label=multi_label,
        upload_bytes=upload_bytes,
        top_k=top_k,
        tells_unknown=tells_unknown,
    )
    pages = {
        "/": ServedPage(
            content=render_page(title=title, classes=shown, card=card, where=where, docs=True).encode(),
            media_type="text/html",
        ),
        "/openapi.json": ServedPage(content=json.dumps(described).encode(), media_type="application/json"),
        "/docs": ServedPage(content=docs_page(described, address=address).encode(), media_type="text/html"),
    }
    for path, file in (("/style.css", "style.css"), ("/page.mjs", "page.mjs"), ("/model.mjs", "served.mjs")):
        media_type = "text/css" if path.endswith(".css") else "text/javascript"
        pages[path] = ServedPage(content=(WEB_FILES / file).read_bytes(), media_type=media_type)
    return pages


def openapi(
    *,
    name: str,
    classes: Sequence[str],
    multi_label: bool,
    upload_bytes: int,
    top_k: int,
    tells_unknown: bool = False,
) -> dict[str, Json]:
    """Return the description of the server by OpenAPI 3.1, for generators of clients."""
    label: dict[str, Json] = {"type": "string", "enum": [str(one) for one in classes]}
    probability: dict[str, Json] = {"type": "number", "minimum": 0, "maximum": 1}
    pair: dict[str, Json] = {
        "type": "object",
        "properties": {"class": label, "probability": probability},
        "required": ["class", "probability"],
    }
    unknown: dict[str, Json] = {
        "known": {"type": "boolean", "description": "whether the image is like the training images"},
        "unknown_score": {"type": "number", "minimum": 0, "description": "above 1 it is not"},
    }
    row: dict[str, Json] = {
        "type": "object",
        "description": "One image: its classes, or why it cannot be read.",
        "properties": {
            "name": {"type": "string", "description": "file name in the form; empty for a body"},
            "predicted": {"type": "array", "items": label} if multi_label else label,
            "probability": {**probability, "description": "of the most probable class"},
            **(unknown if tells_unknown else {}),
            "top": {"type": "array", "items": pair, "maxItems": top_k, "description": "most probable first"},
            "error": {
                "type": "string",
                "description": "why the image cannot be read; without it the other fields are there",
            },
        },
        "required": ["name"],
    }
    answer = _schema({"type": "object", "properties": {"predictions": {"type": "array", "items": row}}})
    refusal = _schema({"type": "object", "properties": {"error": {"type": "string"}}})
    image: dict[str, Json] = {"type": "string", "format": "binary"}
    form: dict[str, Json] = {"schema": {"type": "object", "additionalProperties": image}}
    why = {
        "400": "The request holds no image, or its form is malformed.",
        "408": "The upload took too long.",
        "413": f"The upload is larger than {upload_bytes / 2**20:g} MiB.",
        "415": "The charset of the form is not supported.",
        "421": "The name in Host is not allowed.",
        "503": "Too many images are waiting; Retry-After says when to try again.",
    }
    responses: dict[str, Json] = {
        "200": {"description": "A row for each image, in the order of the request.", "content": answer},
        "422": {"description": "No image of the request can be read; each row says why.", "content": answer},
        **{status: {"description": text, "content": refusal} for status, text in why.items()},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": name, "version": versions()["finetune"], "description": "Image classification."},
        "paths": {
            "/predict": {
                "post": {
                    "operationId": "predict",
                    "summary": "Classify one image, or several",
                    "description": "One image as the body, or any number as files of a form.",
                    "requestBody": {
                        "required": True,
                        "content": {"image/*": {"schema": image}, "multipart/form-data": form},
                    },
                    "responses": responses,
                }
            },
            "/info": _get("info", "The classes, the hash of the model and the limits", "application/json"),
            "/health": _get("health", "Whether the server is ready: 200, else 503", "text/plain"),
            "/metrics": _get("metrics", "Counts and times for Prometheus", "text/plain"),
        },
    }


def _schema(schema: dict[str, Json]) -> dict[str, Json]:
    return {"application/json": {"schema": schema}}


def _get(operation: str, summary: str, media_type: str) -> dict[str, Json]:
    content: dict[str, Json] = {media_type: {}}
    responses: dict[str, Json] = {"200": {"description": summary, "content": content}}
    return {"get": {"operationId": operation, "summary": summary, "responses": responses}}


_DOCS = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'self'; img-src data:; base-uri 'none'; form-action 'none'">
<title>{title}: calling it</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="style.css">
</head>
<body class="docs">
<header><h1>{title}</h1>
<p>Version {version}. For programs: <a href="openapi.json">openapi.json</a>. For people: <a href="./">try it</a>.</p></header>
<main>
{operations}
<h2>From a shell</h2>
<pre>curl --data-binary @photo.jpg {address}/predict
curl -F a=@one.jpg -F b=@two.png {address}/predict</pre>
<h2>From Python</h2>
<pre>import json, urllib.request
photo = open("photo.jpg", "rb").read()
answer = json.load(urllib.request.urlopen("{address}/predict", photo))
print(answer["predictions"][0]["predicted"])</pre>
</main>
</body>
</html>
"""


def docs_page(described: Mapping[str, Json], *, address: str) -> str:
    """Return an OpenAPI description as a page for people, without a script."""
    operations = []
    for path, methods in _mapping(described["paths"]).items():
        for method, operation in _mapping(methods).items():
            fields = _mapping(operation)
            rows = "".join(
                f"<tr><td>{escape(status)}</td><td>{escape(str(_mapping(response)['description']))}</td></tr>"
                for status, response in _mapping(fields["responses"]).items()
            )
            about = f"<p>{escape(str(fields['description']))}</p>" if "description" in fields else ""
            operations.append(
                f"<h2><code>{escape(method.upper())} {escape(path)}</code></h2>\n<p>{escape(str(fields['summary']))}.</p>\n"
                f"{about}<table><tr><th>status</th><th>meaning</th></tr>{rows}</table>"
            )
    row = _mapping(described["paths"])["/predict"]
    content = _mapping(_mapping(_mapping(_mapping(row)["post"])["responses"])["200"])["content"]
    schema = _mapping(_mapping(_mapping(_mapping(content)["application/json"])["schema"])["properties"])["predictions"]
    fields = _mapping(_mapping(_mapping(schema)["items"])["properties"])
    lines = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(str(_mapping(field).get('description', _kind(field))))}</td></tr>"
        for name, field in fields.items()
    )
    operations.append(f"<h2>A row of the answer</h2>\n<table><tr><th>field</th><th>meaning</th></tr>{lines}</table>")
    info = _mapping(described["info"])
    return _DOCS.format(
        title=escape(printable(str(info["title"]))),
        version=escape(str(info["version"])),
        operations="\n".join(operations),
        address=escape(address),
    )


def _kind(field: Json) -> str:
    return "all classes that the image shows" if _mapping(field).get("type") == "array" else "the most probable class"


def _mapping(value: Json) -> Mapping[str, Json]:
    assert isinstance(value, Mapping), "of a description that this module made"
    return value
