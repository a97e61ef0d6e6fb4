// Opens the time of the slider when it is released. Without this script, a button does.
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
  // With a keyboard, each step would open a page. So the button stays.
  place.addEventListener("pointerup", () => setTimeout(() => form.requestSubmit()));
  place.setAttribute("aria-valuetext", shown.textContent);
}
