"use strict";
// The page works without this: it copies commands and opens what is folded.
for (const button of document.querySelectorAll("button[data-copy]")) {
	button.hidden = false;
	button.addEventListener("click", async () => {
		const text = document.getElementById(button.dataset.copy).textContent;
		const label = button.textContent;
		try {
			await navigator.clipboard.writeText(text);
			button.textContent = "Copied";
		} catch {
			const range = document.createRange();
			range.selectNodeContents(document.getElementById(button.dataset.copy));
			getSelection().removeAllRanges();
			getSelection().addRange(range);
			button.textContent = "Selected";
		}
		setTimeout(() => { button.textContent = label; }, 1500);
	});
}
for (const button of document.querySelectorAll("button[data-open]")) {
	button.hidden = false;
	button.addEventListener("click", () => {
		const all = document.querySelectorAll("#" + button.dataset.open + " details");
		const open = button.getAttribute("aria-expanded") !== "true";
		for (const details of all) details.open = open;
		button.setAttribute("aria-expanded", String(open));
	});
}
for (const box of document.querySelectorAll("input[data-filter]")) {
	box.closest("label").hidden = false;
	box.addEventListener("change", () => {
		for (const row of document.querySelectorAll("#" + box.dataset.filter + " tbody tr"))
			row.hidden = box.checked && !row.hasAttribute("data-interesting");
	});
}
// A link to something folded opens it; so does printing.
function reveal() {
	const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
	if (!target) return;
	for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
	target.scrollIntoView();
}
addEventListener("hashchange", reveal);
reveal();
addEventListener("beforeprint", () => { for (const details of document.querySelectorAll("details")) details.open = true; });
