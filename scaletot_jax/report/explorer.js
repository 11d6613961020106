"use strict";
// The explorer: everything it shows lies in the page as JSON (see explorer.py); it asks nothing of any server.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const PAGE = 60; // users listed at a time

  const make = (tag, attributes, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name === "text") node.textContent = value;
      else if (name === "heat") node.style.setProperty("--heat", String(value));
      else if (name === "share") node.style.setProperty("--share", String(value));
      else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
    return node;
  };
  const show = (value, digits = 2) =>
    value === null || value === undefined ? "–" : value.toFixed(digits).replace("-", "\u2212");
  const percent = (value) => (value === null || value === undefined ? "–" : value > 0 && value < 0.005 ? "< 1 %" : `${(100 * value).toFixed(0)} %`);
  const chance = (p) => (p > 0 && p < 0.005 ? p.toPrecision(1) : show(p)); // never shows as 0 what is not

  // -- users ----------------------------------------------------------------------------------------------------------

  const chainOf = (user) => (user.chain === null ? null : data.chains[user.chain]);
  const likely = (chain) => (chain && chain.answers.length ? chain.answers[chain.answers.length - 1][1].reduce((best, p, i, all) => (p > all[best] ? i : best), 0) : null);
  for (const user of data.users) {
    const chain = chainOf(user);
    user.lines = user.profile.map((index) => data.strings[index]);
    user.state = chain === null ? "unreasoned" : chain.accepted ? "accepted" : "rejected";
    user.doubt = chain === null ? null : chain.doubt;
    user.bucket = likely(chain);
    user.refined = chain !== null && chain.refined;
    const words = [`row ${user.row}`, user.id || "", user.split, ...user.lines];
    if (chain !== null) words.push(chain.key, chain.reason, ...chain.values.filter((value) => value !== null));
    user.text = words.join("\n").toLowerCase();
  }
  const title = (user) => (user.id ? user.id : `Row ${user.row.toLocaleString("en")}`);
  const STATES = { accepted: "reasoned", rejected: "rejected", unreasoned: "not reasoned" };
  const badge = (state) => make("span", { class: `badge ${{ accepted: "yes", rejected: "no" }[state] || ""}`, text: STATES[state] });

  // -- the list -------------------------------------------------------------------------------------------------------

  const list = byId("list"), status = byId("status"), more = byId("more"), detail = byId("detail");
  const controls = { query: byId("query"), state: byId("state"), split: byId("split"), answer: byId("answer"), refined: byId("refined"), order: byId("order") };
  const ORDERS = {
    row: (a, b) => a.row - b.row,
    doubt: (a, b) => (b.doubt ?? -1) - (a.doubt ?? -1) || a.row - b.row,
    expected: (a, b) => (b.expected ?? -1) - (a.expected ?? -1) || a.row - b.row,
  };
  let found = [], listed = 0, opened = null;

  const option = (select, value, text) => select.append(make("option", { value, text }));
  for (const name of data.splits) option(controls.split, name, name);
  data.buckets.forEach((name, i) => option(controls.answer, String(i), `${name} ${data.unit}`));

  const filter = () => {
    const begin = performance.now();
    const words = controls.query.value.toLowerCase().split(/\s+/).filter(Boolean);
    const state = controls.state.value, split = controls.split.value, answer = controls.answer.value, refined = controls.refined.checked;
    found = data.users.filter((user) =>
      (state === "" || user.state === state || (state === "reasoned" && user.state !== "unreasoned")) &&
      (split === "" || user.split === split) &&
      (answer === "" || String(user.bucket) === answer) &&
      (!refined || user.refined) &&
      words.every((word) => user.text.includes(word)));
    found.sort(ORDERS[controls.order.value]);
    list.replaceChildren();
    listed = 0;
    grow();
    const took = performance.now() - begin;
    status.textContent = `${found.length.toLocaleString("en")} of ${data.users.length.toLocaleString("en")} users`;
    status.dataset.milliseconds = took.toFixed(1);
  };
  const grow = () => {
    const upto = Math.min(listed + PAGE, found.length);
    list.append(...found.slice(listed, upto).map(entry));
    listed = upto;
    more.hidden = listed >= found.length;
    more.textContent = `Show more (${(found.length - listed).toLocaleString("en")} left)`;
  };
  const entry = (user) => {
    const chain = chainOf(user);
    const said = chain === null ? user.lines.slice(0, 2).join(" · ") : chain.values.filter((value) => value).slice(0, 4).join(" · ");
    const button = make("button", { type: "button", "data-row": user.row, "aria-current": opened === user ? "true" : null },
      make("span", { class: "top" }, make("strong", { text: title(user) }), badge(user.state)),
      make("span", { class: "said", text: said || "Nothing is known." }));
    button.addEventListener("click", () => open(user));
    return make("li", {}, button);
  };

  // -- one user -------------------------------------------------------------------------------------------------------

  // Each opened user is an entry of the browser's history, so that Back returns to the user before, or to the list.
  const narrow = () => matchMedia("(max-width: 60rem)").matches; // the list and a user take turns, see explorer.css
  const named = (hash) => {
    const asked = /^#row-(\d+)$/.exec(hash);
    return asked && data.users.find((user) => user.row === Number(asked[1]));
  };
  const open = (user, { focus = true, record = "pushState" } = {}) => {
    const place = `#row-${user.row}`;
    const from = { list: !document.body.classList.contains("opened") };
    opened = user;
    for (const button of list.querySelectorAll("button")) {
      if (Number(button.dataset.row) === user.row) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
    const chain = chainOf(user);
    const heading = make("h2", { tabindex: "-1" }, title(user), " ", badge(user.state));
    const back = make("button", { type: "button", class: "back", text: "← All users" });
    back.addEventListener("click", close);
    detail.replaceChildren(back, heading, ...facts(user), section("Profile", make("pre", { text: user.lines.join("\n") || "Nothing is known." })));
    if (chain !== null) detail.append(...reasoned(chain));
    else if (user.nearest !== null) detail.append(nearest(user));
    else detail.append(make("p", { class: "absent", text: "Nobody was reasoned about, or the population has not been scored: there is no nearest profile." }));
    document.body.classList.add("opened");
    if (record && location.hash !== place) history[record](record === "pushState" ? from : null, "", place);
    if (focus) heading.focus();
  };
  const close = () => {
    const whole = narrow();
    showList();
    if (!whole) return;
    if (history.state && history.state.list) history.back(); // the entry before this one is the list
    else history.pushState(null, "", location.href.split("#")[0]);
  };
  const showList = () => {
    document.body.classList.remove("opened");
    const button = opened && list.querySelector(`button[data-row="${opened.row}"]`);
    (button || controls.query).focus();
  };
  const section = (name, ...children) => make("section", {}, make("h3", { text: name }), ...children);
  const facts = (user) => {
    const pairs = [["Split", user.split]];
    if (user.expected !== null) pairs.push([`Expected ${data.label}`, show(user.expected)]);
    if (user.positive !== null) pairs.push(["P(any)", percent(user.positive)]);
    if (user.observed !== null) pairs.push([`Observed ${data.label}`, show(user.observed, 0)]);
    return [make("dl", { class: "facts" }, pairs.map(([name, value]) => make("div", {}, make("dt", { text: name }), make("dd", { text: value }))))];
  };
  const nearest = (user) => {
    const other = data.users[user.nearest];
    const go = make("button", { type: "button", class: "link", text: title(other) });
    go.addEventListener("click", () => open(other));
    const box = section("Nearest reasoned profile", make("p", {}, "The teacher did not reason about this profile. Nearest by ẑ is ", go,
      ` (cosine ${show(user.similarity, 3)}), of whom it said:`));
    box.classList.add("nearest");
    box.append(cards(chainOf(other)));
    return box;
  };
  const reasoned = (chain) => {
    const notes = [`log-probability ${show(chain.log_prob)}`, `${chain.calls} calls`, `${chain.tokens} tokens`];
    const out = [section("Chain", chain.reason ? make("p", { class: "soft", text: `Rejected: ${chain.reason}` }) : null, cards(chain),
      make("p", { class: "soft", text: `${notes.join(", ")}. Profile ${chain.key}.` }))];
    out.push(heat(chain));
    if (chain.answers.length) out.push(answers(chain));
    if (chain.nodes.length) out.push(tree(chain));
    return out;
  };
  const cards = (chain) => make("ol", { class: "cards" }, data.segments.map((segment) => {
    const slots = segment.slots.map((index) => {
      const value = chain.values[index], p = chain.shares[index];
      return make("div", { class: "slot" }, make("span", { class: "name", text: data.slots[index].name }),
        make("span", { class: "value", text: value === null ? "text hidden" : value || "no text" }),
        p === null ? make("span", { class: "soft", text: data.slots[index].source }) :
          make("span", { class: "meter", share: p, role: "img", "aria-label": `probability ${percent(p)}` }, percent(p)));
    });
    return make("li", {}, make("h4", { text: segment.title }), slots);
  }));
  const answers = (chain) => section("Answer", make("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": "Distribution of the answer" }, make("table", { class: "answer" },
    make("caption", { class: "hidden", text: "Distribution of the answer" }),
    make("thead", {}, make("tr", {}, make("th", { scope: "col", text: data.unit }), chain.answers.map(([name]) => make("th", { scope: "col", text: name })))),
    make("tbody", {}, data.buckets.map((bucket, i) => make("tr", {}, make("th", { scope: "row", text: bucket }),
      chain.answers.map(([, shares]) => make("td", {}, make("span", { class: "meter", share: shares[i] }, percent(shares[i]))))))))));

  // -- entropy --------------------------------------------------------------------------------------------------------

  // A map is one stop of the tab key, its cells are reached by arrows; what a cell says stands below the map while it is chosen.
  const cellMap = (name, kind, cells) => {
    const line = make("p", { class: "soft said", text: "Choose a cell for its numbers." });
    const buttons = cells.map((cell, i) => {
      const button = make("button", { type: "button", class: cell.heat === null ? "none" : null, heat: cell.heat ?? 0, title: cell.said, "aria-label": cell.said, tabindex: i ? "-1" : "0" }, cell.shown);
      for (const event of ["focus", "click", "mouseenter"]) button.addEventListener(event, () => { line.textContent = cell.said; });
      return button;
    });
    const box = make("ol", { class: `heat ${kind}`, "aria-label": name }, buttons.map((button) => make("li", {}, button)));
    box.addEventListener("focusin", (event) => buttons.forEach((one) => one.setAttribute("tabindex", one === event.target ? "0" : "-1")));
    box.addEventListener("keydown", (event) => {
      const at = buttons.indexOf(event.target);
      const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
      if (at < 0 || to === undefined) return;
      event.preventDefault();
      buttons[Math.max(0, Math.min(to, buttons.length - 1))].focus();
    });
    return [box, line];
  };
  const SILENT = { rule: "by rule, no entropy", free: "free text, see its tokens below", scored: "no distribution was kept, no entropy" };
  const heat = (chain) => {
    const cells = data.slots.map((slot, i) => {
      const h = chain.entropies[i], written = chain.texts.some((text) => text.slot === slot.name);
      const silent = slot.source === "free" && !written ? "free text, none was written" : SILENT[slot.source];
      const said = h === null ? `${slot.name}: ${silent}` : `${slot.name}: entropy ${show(h)} of its largest`;
      return { heat: h, said, shown: [make("span", { text: slot.name }), make("b", { text: h === null ? "–" : show(h) })] };
    });
    const free = data.slots.some((slot) => slot.source === "free");
    const why = chain.texts.length ? "The teacher scores these slots and writes no tokens in them; the tokens of what it wrote follow below."
      : free ? "There is no map by token: the teacher wrote no free text about this profile, and writes no tokens in the other slots."
      : "There is no map by token: no slot of this chain is free text. The teacher scores values that it is given, or a rule sets them, and writes no tokens.";
    const box = section(chain.texts.length ? "Entropy by slot and by token" : "Entropy by slot",
      make("p", { class: "soft", text: `By slot, as a share of the largest entropy its values could have; a dash where a slot has none. ${why}` }),
      cellMap("Entropy by slot", "slots", cells));
    for (const written of chain.texts) {
      const tokens = written.entropies.map((h, i) => {
        const word = written.pieces ? ` “${written.pieces[i]}”` : "";
        return { heat: Math.min(1, h / 3), said: `Token ${i + 1}${word}: entropy ${show(h)} nats, log-probability ${show(written.log_probs[i])}`, shown: written.pieces ? written.pieces[i] : "\u00b7" };
      });
      const fate = written.accepted ? "accepted" : `rejected: ${written.reason}`;
      box.append(make("h4", { text: `Text of ${written.slot}, ${fate}` }), ...cellMap(`Entropy by token of ${written.slot}`, "tokens", tokens));
      if (!written.pieces) box.append(make("p", { class: "soft", text: "One cell a token; the words are hidden in this page." }));
    }
    return box;
  };

  // -- the tree -------------------------------------------------------------------------------------------------------

  const FATES = ["pruned", "kept"];
  const tree = (chain) => {
    const children = new Map();
    for (const row of chain.nodes) {
      const node = Object.fromEntries(data.node_columns.map((name, i) => [name, row[i]]));
      children.set(node.parent, [...(children.get(node.parent) || []), node]);
    }
    const branches = (parent, depth) => {
      const group = children.get(parent) || [];
      if (!group.length) return [];
      const rounds = new Map(); // a revised expansion stands after the one it replaced
      for (const node of group) rounds.set(node.entropy + "|" + node.uncertainty, [...(rounds.get(node.entropy + "|" + node.uncertainty) || []), node]);
      return [...rounds.values()].map((nodes) => make("div", { class: "expansion" }, judged(nodes[0]),
        make("ul", {}, nodes.map((node) => branch(node, depth)))));
    };
    const judged = (node) => {
      const name = data.segments[node.segment] ? data.segments[node.segment].title : "Segment";
      if (!node.entropy && !node.uncertainty && !node.threshold) return make("p", { class: "judged" }, make("strong", { text: name }), " by rule");
      const again = node.refined ? `, asked again, ${node.taken ? "revision accepted" : "revision not accepted"}` : "";
      return make("p", { class: "judged" }, make("strong", { text: name }),
        ` entropy ${show(node.entropy)}, disagreement ${show(node.disagreement)}, doubt ${show(node.uncertainty)} against threshold ${show(node.threshold)}${again}`);
    };
    const branch = (node, depth) => {
      const reason = data.reasons[node.reason];
      const line = [make("span", { class: "value", text: node.values.map((i) => (i < 0 ? "text" : data.words[i])).join("; ") }),
        make("span", { class: "numbers", text: `p ${chance(node.probability)}  ln p ${node.probability > 0 ? show(Math.log(node.probability)) : "\u2212∞"}` }),
        make("span", { class: `badge ${node.kept ? "yes" : ""}`, text: FATES[Number(node.kept)] }),
        reason ? make("span", { class: "soft", text: reason }) : null];
      const below = branches(node.node, depth + 1);
      if (!below.length) return make("li", { class: node.kept ? "kept" : "pruned" }, make("div", { class: "leaf" }, line));
      return make("li", { class: node.kept ? "kept" : "pruned" }, make("details", { open: depth < 1 && node.kept }, make("summary", {}, line), below));
    };
    const kept = chain.nodes.filter((row) => row[data.node_columns.indexOf("kept")]).length;
    const toggle = make("button", { type: "button", class: "link", text: "Expand all" });
    const root = make("div", { class: "tree" }, branches(0, 0));
    toggle.addEventListener("click", () => {
      const closed = [...root.querySelectorAll("details:not([open])")];
      for (const one of closed.length ? closed : root.querySelectorAll("details")) one.open = closed.length > 0;
      toggle.textContent = closed.length ? "Collapse all" : "Expand all";
    });
    root.addEventListener("keydown", (event) => {
      const here = event.target.closest("summary");
      if (!here) return;
      const visible = [...root.querySelectorAll("summary")].filter((one) => one.offsetParent !== null);
      const at = visible.indexOf(here);
      if (event.key === "ArrowRight" && !here.parentNode.open) here.parentNode.open = true;
      else if (event.key === "ArrowRight" || event.key === "ArrowDown") (visible[at + 1] || here).focus();
      else if (event.key === "ArrowLeft" && here.parentNode.open) here.parentNode.open = false;
      else if (event.key === "ArrowLeft") (here.parentNode.parentNode.closest("details")?.querySelector("summary") || here).focus();
      else if (event.key === "ArrowUp") (visible[at - 1] || here).focus();
      else return;
      event.preventDefault();
    });
    return section("Search tree", make("p", { class: "soft" }, `${chain.nodes.length} candidates, ${kept} kept. `, toggle), root);
  };

  // -- input ----------------------------------------------------------------------------------------------------------

  for (const control of Object.values(controls)) control.addEventListener("input", filter);
  more.addEventListener("click", () => {
    const next = listed;
    grow();
    list.children[next]?.querySelector("button").focus();
  });
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, select, textarea");
    if (event.key === "/" && !typing) {
      event.preventDefault();
      if (document.body.classList.contains("opened")) close();
      controls.query.focus();
    } else if (event.key === "Escape" && event.target.closest("#detail")) close();
    else if (event.key === "ArrowDown" && event.target === controls.query) {
      event.preventDefault();
      list.querySelector("button")?.focus();
    } else if (event.target.closest("#list") && ["ArrowDown", "ArrowUp", "Home", "End"].includes(event.key)) {
      event.preventDefault();
      const buttons = [...list.querySelectorAll("button")], at = buttons.indexOf(event.target);
      const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
      (buttons[to] || (to < 0 ? controls.query : buttons[at])).focus();
    }
  });
  filter();
  addEventListener("popstate", () => {
    const user = named(location.hash);
    if (user) open(user, { record: null });
    else if (document.body.classList.contains("opened")) showList();
  });
  const first = named(location.hash) || (narrow() ? null : found[0]);
  if (first) open(first, { focus: false, record: "replaceState" });
})();
