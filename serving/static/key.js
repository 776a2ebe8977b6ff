// The API key, for servers that want one: asked for once, kept in this tab alone.

const KEPT = "safelight-api-key";
const [lock, form, field, why, unlock] = ["lock", "lock-form", "key", "lock-why", "unlock"].map((id) =>
  document.getElementById(id),
);

let [key, asking, left] = [null, null, false];
try {
  key = sessionStorage.getItem(KEPT);
} catch {
  // a browser that keeps nothing: the key lives as long as the page
}

export const held = () => key;

// A key to try where `refused` was not accepted (null: none was sent); null where the person would rather not say one.
// `patient`: who left this question before is not asked again.
export function another(refused, patient) {
  if (key !== refused) return key; // given meanwhile, for another request
  if (left && patient) return null;
  asking ??= asked(refused).finally(() => {
    asking = null;
  });
  return asking;
}

function asked(refused) {
  why.textContent = refused === null ? "Whoever runs it has given you one." : "The server did not accept that key.";
  field.value = "";
  lock.returnValue = "";
  lock.showModal();
  field.focus();
  return new Promise((resolve) => {
    lock.addEventListener("close", () => resolve(lock.returnValue ? keep(lock.returnValue) : leave()), { once: true });
  });
}

function keep(given) {
  [key, left, unlock.hidden] = [given, false, true];
  try {
    sessionStorage.setItem(KEPT, given);
  } catch {
    // as above
  }
  return given;
}

function leave() {
  [left, unlock.hidden] = [true, false];
  return null;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  lock.close(field.value);
});
document.getElementById("leave").addEventListener("click", () => lock.close(""));
unlock.addEventListener("click", async () => {
  if (await another(key, false)) document.dispatchEvent(new Event("unlocked"));
});
