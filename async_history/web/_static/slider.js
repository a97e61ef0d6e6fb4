// Goes to the time of the slider as it is let go. Without this, a button does.
const form = document.getElementById("slider");
if (form) {
  const place = form.elements.namedItem("place");
  const shown = form.querySelector("output");
  const begin = Number(form.dataset.begin);
  const end = Number(form.dataset.end);
  place.addEventListener("input", () => {
    const seconds = begin + ((end - begin) * place.value) / place.max;
    shown.textContent = new Date(seconds * 1000).toISOString().slice(0, 19).replace("T", " ");
    place.setAttribute("aria-valuetext", shown.textContent);
  });
  // By keyboard, each step would be a change: the button stays for that.
  place.addEventListener("pointerup", () => setTimeout(() => form.requestSubmit()));
  place.setAttribute("aria-valuetext", shown.textContent);
}
