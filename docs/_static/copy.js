// A button at every block of code, which copies it. Of a session, it copies what was typed: no prompts, no output.

const PROMPT = /^(>>>|\.\.\.|\$)( |$)/;

function typed(code) {
  const lines = code.replace(/\n$/, "").split("\n");
  if (!PROMPT.test(lines[0])) return lines.join("\n");
  return lines.filter((line) => PROMPT.test(line)).map((line) => line.replace(PROMPT, "")).join("\n");
}

function addButton(block) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copybtn";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(typed(block.querySelector("pre").textContent));
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  block.append(button);
}

document.addEventListener("DOMContentLoaded", () => {
  if (!navigator.clipboard) return; // pages served without https have none
  const blocks = [...document.querySelectorAll("div.highlight")];
  blocks.filter((block) => !block.closest(".cell_output")).forEach(addButton);
});
