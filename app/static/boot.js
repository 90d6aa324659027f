// Last of the scripts: every drawing is registered now, so the places that are already on the page get theirs.
window.mbq.mountAll();
window.mbq.ready = true;
