"""Thumbnails: in a list of pages with the class `cards`, every page that has pictures is shown with its first one."""

from docutils import nodes


def setup(app):
    """Connect the function below."""
    app.connect("doctree-resolved", add_thumbnails)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def add_thumbnails(app, doctree, docname):
    """Put the first picture of the linked page of the same folder into each card of the gallery."""
    if docname != "gallery/index":
        return
    for card in doctree.findall(nodes.list_item):
        link = next(card.findall(nodes.reference))
        page = f"gallery/{link['refuri'].partition('.')[0]}"
        picture = next(app.env.get_doctree(page).findall(nodes.image)).deepcopy()
        image = nodes.reference("", "", picture, refuri=link["refuri"], internal=True)
        card.insert(0, nodes.paragraph("", "", image))
