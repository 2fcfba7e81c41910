// Shows a page in the language that its reader has chosen, at first in that of the browser; see languages.py.
(() => {
  const KEY = "wukong-language", ATTRIBUTES = ["alt", "title", "aria-label", "placeholder", "text"];
  const root = document.documentElement;
  // A page in a frame without an origin has no storage.
  const stored = () => { try { return localStorage.getItem(KEY); } catch { return null; } };
  const chosen = () => stored() ?? (navigator.language.startsWith("zh") ? "zh-CN" : "en");
  const translate = (element, name, language) => {
    const isText = name === "text", english = `data-en-${name}`;
    if (!element.hasAttribute(english))
      element.setAttribute(english, isText ? element.textContent : element.getAttribute(name));
    const text = element.getAttribute(language === "en" ? english : `data-zh-${name}`);
    isText ? element.textContent = text : element.setAttribute(name, text);
  };
  /** Shows a document in a language; for a script that shows a part of another page, too. */
  globalThis.speak = (language, page = document) => {
    page.documentElement.lang = language;
    for (const name of ATTRIBUTES)
      for (const element of page.querySelectorAll(`[data-zh-${name}]`)) translate(element, name, language);
  };
  document.addEventListener("click", event => {
    if (!event.target.closest("[data-language]")) return;
    const language = root.lang === "en" ? "zh-CN" : "en";
    try { localStorage.setItem(KEY, language); } catch { /* the choice lasts as long as the page */ }
    speak(language);
  });
  root.lang = chosen(); // before anything is painted; attributes follow when all elements are there
  document.addEventListener("DOMContentLoaded", () => speak(root.lang));
  addEventListener("pageshow", event => { if (event.persisted) speak(chosen()); });
})();
