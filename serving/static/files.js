// The files that were dropped or pasted, also those in dropped folders.

const FOLDER_FILES = 10_000; // a home folder dropped by mistake ends somewhere

export async function filesIn(transfer) {
  // Asked for at once: after the first wait the browser takes them away.
  const entries = [...transfer.items].filter((item) => item.kind === "file").map((item) => item.webkitGetAsEntry?.());
  const files = [...transfer.files];
  if (!entries.some((entry) => entry?.isDirectory)) return files;
  const found = [];
  for (const entry of entries) await walk(entry, found);
  return found;
}

async function walk(entry, found) {
  if (!entry || found.length >= FOLDER_FILES || entry.name.startsWith(".")) return;
  if (entry.isFile) {
    found.push(await new Promise((resolve, reject) => entry.file(resolve, reject)));
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return;
    for (const each of some) await walk(each, found);
  }
}
