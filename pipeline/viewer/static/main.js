// Which page is shown: the collection, or one clip (?clip=...&t=12.4).
import { ask, query, say, state, without } from "./page.js";
import { showCollection, collectionKey } from "./collection.js";
import { showClip, clipKey, leaveClip } from "./clip.js";

const help = document.getElementById("help");
document.getElementById("help-button").addEventListener("click", () => help.showModal());

async function show() {
  leaveClip();
  const asked = query();
  try {
    if (asked.get("clip")) await showClip(asked.get("clip"), asked);
    else await showCollection(asked);
  } catch (error) {
    const main = document.getElementById("main");
    if (!main.childElementCount || asked.get("clip")) {
      const line = document.createElement("p");
      line.className = "warning";
      line.textContent = error.message;
      const back = document.createElement("a");
      back.href = "/";
      back.textContent = "Collection";
      main.replaceChildren(line, back);
    }
    say(error.message, { bad: true });
  }
}

addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
  const typing = event.target.matches("input:not([type=range]):not([type=radio]):not([type=checkbox]), select, textarea");
  if (typing) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.key === "?") help.showModal();
  else if (!(query().get("clip") ? clipKey : collectionKey)(event)) return;
  event.preventDefault();
});

// Who reads by ear or goes by keys is led to the new page.
addEventListener("popstate", async () => {
  scrollTo(0, 0);
  await show();
  document.getElementById("main").focus({ preventScroll: true });
});

// The token is in a cookie by now; in the address it would be shared with every link.
if (query().has("token")) {
  const rest = without(query(), "token").toString();
  history.replaceState(null, "", rest ? `/?${rest}` : "/");
}

// Of a large collection that is opened for the first time some clips are shown while the others are read.
async function tellReading(told) {
  const line = document.getElementById("reading"), bar = line.querySelector("progress");
  while (told && !told.error) {
    line.firstElementChild.textContent = "All labels are read for the first time. Until then the pages have some of them.";
    if (told.num_shards) Object.assign(bar, { max: told.num_shards, value: told.num_read });
    line.hidden = false;
    await new Promise(resolve => { setTimeout(resolve, 2000); });
    ({ reading: told } = await ask("/api/reading"));
  }
  bar.hidden = true;
  if (told) {
    line.firstElementChild.textContent = `Not all labels can be shown: ${told.error}`;
    return;
  }
  line.hidden = true;
  state.collection = await ask("/api/collection");
  say("All labels are read.");
  if (!query().get("clip")) await showCollection(query());
}

try {
  state.collection = await ask("/api/collection");
  document.getElementById("models").textContent = `Model ${state.collection.models.join(" and ")}`;
  await show();
  if (state.collection.reading) await tellReading(state.collection.reading);
} catch (error) {
  say(error.message, { bad: true });
}
