// What the page cannot do without a script: send a picture, and show the patches of one word.
// Its languages are chosen by language.js, which has run before.

const upload = document.querySelector("[data-upload]");
const input = document.querySelector("#file");
const status = document.querySelector("[data-status]");
let picture = null;

/** Says one of the page's messages, which the page holds in both languages. */
function say(name) {
  status.replaceChildren(document.querySelector(`[data-message="${name}"]`).content.cloneNode(true));
}

/** Sends the picture, with what is asked about it, and shows the page that the server makes of it. */
async function ask(questions) {
  if (picture.size > Number(input.dataset.most)) {
    say("too-large");
    return;
  }
  say("sent");
  try {
    const answer = await fetch(`/pictures?${new URLSearchParams(questions)}`, { method: "POST", body: picture });
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const content = page.querySelector("main");
    if (!content) {
      say("no-page");
      return;
    }
    speak(document.documentElement.lang, page);
    document.querySelector("main").replaceWith(content);
    document.querySelector("[data-asked]").replaceWith(page.querySelector("[data-asked]"));
    document.querySelector("#q").value = page.querySelector("#q").value;
    document.querySelector("title").replaceWith(page.querySelector("title"));
    status.replaceChildren();
    content.focus({ preventScroll: true });
    scrollTo(0, 0);
  } catch {
    say("no-answer");
  }
}

function take(file) {
  if (file) {
    picture = file;
    ask({});
  }
}

upload.hidden = false;
// A browser says nothing when the same file is chosen again.
input.addEventListener("click", () => { input.value = ""; });
input.addEventListener("change", () => take(input.files[0]));

document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  take(event.dataTransfer.files[0]);
});

// A question about the picture that was sent: it is sent again, because the server keeps none.
document.addEventListener("submit", (event) => {
  if ("sent" in event.target.dataset) {
    event.preventDefault();
    ask(Object.fromEntries(new FormData(event.target)));
  }
});

document.addEventListener("click", (event) => {
  const word = event.target.closest(".word");
  if (!word) return;
  const pressed = word.getAttribute("aria-pressed") !== "true";
  const alignment = word.closest("[data-alignment]");
  for (const other of alignment.querySelectorAll(".word")) other.setAttribute("aria-pressed", "false");
  word.setAttribute("aria-pressed", String(pressed));
  for (const patch of alignment.querySelectorAll(".patch")) {
    patch.dataset.first ??= String(patch.classList.contains("on"));
    patch.classList.toggle("on", pressed ? patch.dataset.word === word.dataset.word : patch.dataset.first === "true");
  }
});
