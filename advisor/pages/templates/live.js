"use strict";
// A page that follows: whenever the daemon tells of a change, the page is asked for again, and what differs is put in its place.
// Focus, what is folded open, where it is scrolled to and the charts stay. Without this script the page reloads by itself.
(() => {
  // The least time between two questions; how often is asked though nothing was told; the same while nothing can be told. (ms)
  const PAUSE = 700, SLOW = 10000, QUICK = 2500;
  const TOLD = ["message", "job", "jobs", "state", "trial", "slot", "slots", "study", "done", "end"];

  const same = (one, other) => one.nodeType === other.nodeType && one.nodeName === other.nodeName && (one.id || "") === (other.id || "");
  const attributes = (now, next) => {
    const own = (name) => (name === "open" && now.nodeName === "DETAILS") || (name === "hidden" && now.dataset.copies);
    for (const { name, value } of [...next.attributes]) {
      if (!own(name) && now.getAttribute(name) !== value) now.setAttribute(name, value);
    }
    for (const { name } of [...now.attributes]) if (!own(name) && !next.hasAttribute(name)) now.removeAttribute(name);
  };
  const become = (now, next) => {
    if (now.nodeType !== Node.ELEMENT_NODE) {
      if (now.nodeValue !== next.nodeValue) now.nodeValue = next.nodeValue;
      return;
    }
    if (now.matches(".plot")) { // what is in it is plotly's
      for (const name of ["aria-label", "data-figure"]) now.setAttribute(name, next.getAttribute(name));
      return;
    }
    if (now.matches(".copied, #lost, noscript")) return;
    attributes(now, next);
    children(now, next);
  };
  const children = (now, next) => {
    const wanted = new Set([...next.children].map((each) => each.id).filter(Boolean));
    const known = new Map([...now.children].filter((each) => each.id).map((each) => [each.id, each]));
    let place = now.firstChild;
    for (const each of [...next.childNodes]) {
      while (place && place.id && !wanted.has(place.id)) {
        const gone = place;
        place = place.nextSibling;
        gone.remove();
      }
      const found = each.id ? known.get(each.id) : place;
      if (found && same(found, each)) {
        if (found === place) place = place.nextSibling;
        else now.insertBefore(found, place);
        become(found, each);
      } else {
        now.insertBefore(document.importNode(each, true), place);
      }
    }
    while (place) {
      const gone = place;
      place = place.nextSibling;
      gone.remove();
    }
  };

  let events = null, asking = false, again = false, timer = 0, asked = 0;
  const lost = (text) => {
    const place = document.getElementById("lost");
    if (place && place.textContent !== text) place.textContent = text;
  };
  const follows = () => document.body.dataset.follows;
  const take = (text) => {
    const page = new DOMParser().parseFromString(text, "text/html");
    if (!page.getElementById("main") || !page.getElementById("said")) return location.reload(); // another page by now, to log in
    document.title = page.title;
    for (const part of ["body > header", "body > main", "#figures"]) {
      become(document.querySelector(part), page.querySelector(part));
    }
    if (page.body.dataset.follows) document.body.dataset.follows = page.body.dataset.follows;
    else delete document.body.dataset.follows;
    document.dispatchEvent(new Event("advisor:changed"));
  };
  const ask = async () => {
    if (asking) { again = true; return; }
    asking = true;
    again = false;
    asked = Date.now();
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" }, cache: "no-store" });
      if (answer.status === 401 || answer.redirected) return location.reload();
      if (!answer.ok) throw new Error(String(answer.status));
      take(await answer.text());
      lost("");
    } catch {
      lost("The daemon does not answer: this is how it stood last. It is asked again.");
    } finally {
      asking = false;
      plan(again ? PAUSE : null);
    }
  };
  const plan = (soon) => {
    clearTimeout(timer);
    if (!follows()) return leave();
    if (document.hidden) return;
    const usual = events && events.readyState === EventSource.OPEN ? SLOW : QUICK;
    timer = setTimeout(ask, soon === null ? usual : Math.max(0, asked + soon - Date.now()));
  };
  const told = () => {
    if (asking) again = true;
    else plan(PAUSE);
  };
  const leave = () => {
    if (events) events.close();
    events = null;
  };
  const listen = () => {
    leave();
    if (!follows() || document.hidden) return;
    // Six connections are all that a browser has for one host: a page that nobody sees gives its own back.
    events = new EventSource(follows());
    for (const name of [...TOLD, "error"]) events.addEventListener(name, told);
  };
  document.addEventListener("visibilitychange", () => {
    listen();
    if (document.hidden) clearTimeout(timer);
    else if (follows()) ask();
  });
  addEventListener("pagehide", leave);
  addEventListener("pageshow", (event) => { if (event.persisted) { listen(); ask(); } });
  const error = document.getElementById("error");
  if (error) error.focus();
  if (follows()) {
    listen();
    plan(null);
  }
})();
