// Leads an address beside the pages on to the page, with its anchor.
location.replace(document.currentScript.dataset.to + location.hash);
