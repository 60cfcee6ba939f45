// What both pages share.

export const $ = id => document.getElementById(id);

export function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;         // never as markup: strangers wrote it
  return element;
}

/** The round face of somebody: a letter, in a colour that goes with the name. */
export function paint(face, name) {
  let hash = 0;
  for (const character of name) hash = (hash * 31 + character.codePointAt(0)) % 8;
  face.className = `face hue-${hash}`;
  face.textContent = [...name][0]?.toUpperCase() ?? "?";
}

export class Refused extends Error {
  constructor(status, text) { super(text); this.status = status; }
}

/** Ask our server; the JSON it answers with. Raises `Refused` with its words, status 0 if it cannot be reached. */
export async function ask(path, value) {
  const options = value === undefined ? {} : {
    method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(value),
  };
  let answer;
  try {
    answer = await fetch(path, {...options, signal: AbortSignal.timeout(15_000)});
  } catch {
    throw new Refused(0, "The server cannot be reached. Please try again.");
  }
  if (!answer.ok) throw new Refused(answer.status, (await answer.text()).trim());
  return answer.json();
}

/** Show in #state how the connection is; `live`: what was subscribed to comes. Returns whether it is lost. */
export function showState(bus, live) {
  if (live) showState.before = true;
  const lost = bus.state === "closed" || bus.state === "waiting" || (!live && showState.before === true);
  const state = live ? "online" : !navigator.onLine ? "offline" : lost ? "reconnecting" : "connecting";
  document.body.dataset.state = state;
  if ($("state").textContent !== state) $("state").textContent = state;
  return lost;
}
