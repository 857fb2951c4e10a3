// Sorts and filters the cards. Without this script the page shows all cards, in the order of the first sort option.
"use strict";
{
  const [controls, sheet, find, group, order, descending, size, shown] = [
    "controls", "sheet", "find", "group", "order", "descending", "size", "shown",
  ].map((id) => document.getElementById(id));

  const cards = Array.from(sheet.querySelectorAll(".card"), (node, index) => ({
    node,
    scan: node.dataset.scan,
    group: node.dataset.group,
    values: { ...JSON.parse(node.dataset.values), [order.options[0].value]: index },
  }));
  [...cards]
    .sort((a, b) => a.scan.localeCompare(b.scan, "en", { numeric: true }))
    .forEach((card, index) => { card.values.scan = index; });

  const sort = () => {
    const sign = descending.checked ? -1 : 1;
    const value = (card) => card.values[order.value];
    const known = cards.filter((card) => value(card) !== undefined).sort((a, b) => sign * (value(a) - value(b)));
    const unknown = cards.filter((card) => value(card) === undefined);
    sheet.append(...[...known, ...unknown].map((card) => card.node));
  };

  const filter = () => {
    const text = find.value.trim().toLowerCase();
    const chosen = group.selectedOptions[0].dataset.group;
    for (const card of cards) {
      card.node.hidden = !card.scan.toLowerCase().includes(text) || ![undefined, card.group].includes(chosen);
    }
    const count = cards.filter((card) => !card.node.hidden).length;
    shown.textContent = `${count} of ${cards.length} shown`;
  };

  // A link to a card shows it, even if a filter hides the card.
  const reveal = () => {
    const card = cards.find(({ node }) => node.id === decodeURIComponent(location.hash.slice(1)));
    if (card?.node.hidden) {
      find.value = "";
      group.selectedIndex = 0;
      filter();
      card.node.scrollIntoView();
    }
  };

  find.addEventListener("input", filter);
  group.addEventListener("change", filter);
  order.addEventListener("change", sort);
  descending.addEventListener("change", sort);
  size.addEventListener("input", () => sheet.style.setProperty("--card", `${size.value}rem`));
  addEventListener("hashchange", reveal);
  filter();
  controls.hidden = false;
}
