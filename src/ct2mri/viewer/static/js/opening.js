// Opening a person's files: chosen or dropped, sent to the server, read there.

import { get, post, put, remove } from "./api.js";
import { $, el } from "./dom.js";
import { refreshVolumes } from "./images.js";
import { announce, attempt, notice } from "./notices.js";

const VOLUME_FILE = /\.(nii|nii\.gz|nrrd|mha|zip)$/i;
const SUFFIX = /\.(nii|nii\.gz|nrrd|mha|zip|dcm)$/i;
const HIDDEN_FILE = /(^|\/)(\.[^/]*|Thumbs\.db|DICOMDIR)$/i;

export class Opening {
  #depth = 0;

  constructor(store, host) {
    this.store = store;
    const files = el("input", { type: "file", multiple: true, class: "unseen", tabindex: "-1", "aria-hidden": "true", id: "files" });
    const folder = el("input", { type: "file", webkitdirectory: true, class: "unseen", tabindex: "-1", "aria-hidden": "true", id: "folder" });
    for (const input of [files, folder]) {
      input.addEventListener("change", () => {
        const chosen = [...input.files].map((file) => ({ file, path: file.webkitRelativePath || file.name }));
        input.value = "";
        this.open(chosen);
      });
    }
    this.phantom = el("button", { type: "button", class: "plain", id: "open-phantom", onclick: () => this.drawPhantom() }, "Draw a phantom");
    this.list = el("ul", { class: "uploads" });
    host.append(
      el(
        "div",
        { class: "line" },
        el("button", { type: "button", id: "open-files", "aria-keyshortcuts": "O", onclick: () => files.click() }, "Files…"),
        el("button", { type: "button", id: "open-folder", onclick: () => folder.click() }, "DICOM folder…"),
      ),
      el("div", { class: "line" }, this.phantom),
      files,
      folder,
      el("p", { class: "quiet" }, "NIfTI, NRRD, MHA, zip or DICOM. Drop them anywhere."),
      this.list,
    );
    this.#listenToDrops();
  }

  /** Opens files: volumes one by one, all others together as one DICOM series. */
  open(entries) {
    const usable = entries.filter(({ path }) => !HIDDEN_FILE.test(path));
    const volumes = usable.filter(({ path }) => VOLUME_FILE.test(path));
    const slices = usable.filter(({ path }) => !VOLUME_FILE.test(path));
    const sent = volumes.map((entry) => this.#send(entry.file.name, "file", [entry]));
    if (slices.length > 0) sent.push(this.#send(slices[0].path.split("/")[0], "dicom", slices));
    return Promise.all(sent);
  }

  async #send(name, kind, entries) {
    const cancelling = new AbortController();
    const total = entries.reduce((sum, { file }) => sum + file.size, 0);
    const bar = el("progress", { max: "1", value: "0", "aria-label": `Opening ${name}` });
    const said = el("span", { class: "said" }, "Sending");
    const cancel = el("button", { type: "button", class: "plain small", onclick: () => cancelling.abort() }, "Cancel");
    const row = el("li", {}, el("p", { class: "name" }, name), bar, el("div", { class: "line" }, said, cancel));
    this.list.append(row);
    announce(`Opening ${name}.`);
    let id;
    try {
      const limit = this.store.state.status?.limits?.upload_bytes;
      if (limit && total > limit) throw new Error(`${name} has ${size(total)}; at most ${size(limit)} can be opened in the page.`);
      id = (await post("/api/uploads", { name, kind })).id;
      await sendAll(id, entries, cancelling.signal, (sent) => {
        bar.value = total ? sent / total : 1;
        said.textContent = `Sending, ${size(sent)} of ${size(total)}`;
      });
      cancel.hidden = true;
      bar.removeAttribute("value");
      said.textContent = "Reading";
      await post(`/api/uploads/${id}/finish`);
      await this.#showRead(id);
      announce(`${name} is open.`);
    } catch (error) {
      if (error.name === "AbortError") announce(`${name} was not opened.`);
      else notice(`${name}: ${error.message}`);
      if (id) remove(`/api/uploads/${id}`).catch(() => {});
    } finally {
      row.remove();
    }
  }

  /** Asks the server for its phantom. */
  drawPhantom() {
    return attempt(async () => {
      this.phantom.disabled = true;
      announce("A digital phantom is being drawn.");
      try {
        await this.#showRead((await post("/api/demo")).id);
      } finally {
        this.phantom.disabled = false;
      }
    });
  }

  async #showRead(id) {
    const volume = await whenRead(id);
    await refreshVolumes(this.store);
    const opened = this.store.state.volumes.find((other) => other.id === volume);
    if (opened) this.store.set({ case: opened.group });
  }

  #listenToDrops() {
    const over = (shown) => ($("drop").hidden = !shown);
    const files = (event) => event.dataTransfer?.types.includes("Files");
    window.addEventListener("dragenter", (event) => {
      if (!files(event)) return;
      this.#depth += 1;
      over(true);
    });
    window.addEventListener("dragleave", (event) => {
      if (!files(event)) return;
      this.#depth = Math.max(0, this.#depth - 1);
      over(this.#depth > 0);
    });
    window.addEventListener("dragover", (event) => files(event) && event.preventDefault());
    window.addEventListener("drop", async (event) => {
      if (!files(event)) return;
      event.preventDefault();
      this.#depth = 0;
      over(false);
      this.open(await dropped(event.dataTransfer));
    });
  }
}

/** The volume that an upload has become, once the server has read it. */
export async function whenRead(id) {
  for (let wait = 150; ; wait = Math.min(wait * 1.5, 2000)) {
    const upload = await get(`/api/uploads/${id}`);
    if (upload.state === "failed") throw new Error(upload.detail);
    if (upload.state === "done") return upload.volume;
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}

async function sendAll(id, entries, signal, onSent) {
  const sent = new Array(entries.length).fill(0);
  let next = 0;
  const worker = async () => {
    while (next < entries.length) {
      const index = next++;
      const { file, path } = entries[index];
      // Of the name only the suffix matters there, and names may be patients': they do not belong into an address.
      const suffix = path.match(SUFFIX)?.[0] ?? "";
      await put(
        `/api/uploads/${id}/files?name=${index + 1}${suffix}`,
        file,
        (bytes) => {
          sent[index] = Math.min(bytes, file.size);
          onSent(sent.reduce((sum, part) => sum + part, 0));
        },
        signal,
      );
    }
  };
  await Promise.all([worker(), worker(), worker(), worker()]);
}

/** The files of a drop, folders gone through: [{file, path}]. */
async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (entries.length === 0) return [...transfer.files].map((file) => ({ file, path: file.name }));
  const found = [];
  for (const entry of entries) await walk(entry, "", found);
  return found;
}

async function walk(entry, folder, found) {
  const path = folder + entry.name;
  if (entry.isFile) {
    found.push({ path, file: await new Promise((resolve, reject) => entry.file(resolve, reject)) });
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (some.length === 0) return;
    for (const inner of some) await walk(inner, `${path}/`, found);
  }
}

function size(bytes) {
  if (bytes >= 1e9) return `${(bytes / 1e9).toFixed(1)} GB`;
  return bytes >= 1e6 ? `${(bytes / 1e6).toFixed(1)} MB` : `${Math.ceil(bytes / 1e3)} kB`;
}
