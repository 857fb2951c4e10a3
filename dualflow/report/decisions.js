// Collects decisions on scans, and saves them as the table that study.exclusions reads.
{
  const bar = document.getElementById("decisions");
  const [save, message] = ["save", "decided"].map((id) => document.getElementById(id));
  const key = `dualflow decisions: ${document.title} ${bar.dataset.key}`;
  const columns = ["subject", "session", "decision", "reason"];

  // A page in a file may have no storage; decisions are then lost when it is closed.
  const stored = () => { try { return JSON.parse(localStorage.getItem(key)) ?? {}; } catch { return {}; } };
  const remember = () => { try { localStorage.setItem(key, JSON.stringify(state)); } catch { /* no storage */ } };
  // Scans that an earlier table excluded have no card, and stay in the table.
  const state = { ...JSON.parse(bar.dataset.earlier), ...stored() };

  const clean = (text) => text.replace(/\s+/g, " ").trim();
  const show = () => {
    const rows = Object.values(state);
    const rejected = rows.filter((row) => row.decision !== "keep");
    const lacking = Object.keys(state).filter((scan) => state[scan].decision !== "keep" && !clean(state[scan].reason));
    message.textContent = lacking.length
      ? `write a reason for ${lacking.slice(0, 3).join(", ")}${lacking.length > 3 ? " ..." : ""}`
      : `${rows.length - rejected.length} kept, ${rejected.length} excluded or without target`;
    save.disabled = !rows.length || lacking.length > 0;
  };

  for (const card of document.querySelectorAll(".card")) {
    const scan = card.dataset.scan;
    const reason = card.querySelector(".decision input[type=text]");
    const choices = card.querySelectorAll(".decision input[type=radio]");
    const update = () => {
      const choice = [...choices].find((radio) => radio.checked);
      if (choice) state[scan] = { decision: choice.value, reason: reason.value };
      card.classList.toggle("rejected", (choice?.value ?? "keep") !== "keep");
      remember();
      show();
    };
    for (const radio of choices) {
      radio.checked = state[scan]?.decision === radio.value;
      radio.addEventListener("change", update);
    }
    reason.value = state[scan]?.reason ?? "";
    reason.addEventListener("input", update);
    card.classList.toggle("rejected", (state[scan]?.decision ?? "keep") !== "keep");
  }

  save.addEventListener("click", () => {
    const rows = Object.keys(state).sort().map((scan) => {
      const [subject, session] = scan.replace(/^sub-/, "").split("_ses-");
      return [subject, session ?? "n/a", state[scan].decision, clean(state[scan].reason) || "n/a"];
    });
    const text = [columns, ...rows].map((row) => `${row.join("\t")}\n`).join("");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/tab-separated-values" }));
    link.download = "exclusions.tsv";
    link.click();
    URL.revokeObjectURL(link.href);
  });

  show();
  document.body.classList.add("decidable");
}
