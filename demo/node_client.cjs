// Logs the JSON lines of standard input to a Fluent Forward port with acknowledgements, as an application would.
const { FluentClient } = require("@fluent-org/logger");
const lines = require("fs").readFileSync(0, "utf8").split("\n").filter(Boolean);

const client = new FluentClient("worker", {
  socket: { host: "127.0.0.1", port: Number(process.argv[2]), timeout: 5000 },
  ack: { ackTimeout: 30000 },
  eventMode: "PackedForward",
  milliseconds: true,
  flushInterval: 20,
  disconnect: { waitForPending: true },
});

Promise.all(lines.map((line) => client.emit("jobs", JSON.parse(line))))
  .then(() => client.disconnect())
  .catch((error) => {
    console.error(String(error));
    process.exit(1);
  });
