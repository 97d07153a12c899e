// The theme that was chosen on an earlier visit; "" is the system's.
document.documentElement.dataset.theme = localStorage.getItem("galley.theme") ?? "";
