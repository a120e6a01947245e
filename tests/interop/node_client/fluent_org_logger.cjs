// @fluent-org/logger: sends the JSON lines of standard input and ends when every one has been acknowledged.
// Argument: JSON with port, eventMode, and for a secure listener sharedKey, username, password, caFile.
const { readFileSync } = require("fs");
const { FluentClient } = require("@fluent-org/logger");
const options = JSON.parse(process.argv[2]);
const records = readFileSync(0, "utf8").split("\n").filter(Boolean).map((line) => JSON.parse(line));

const socket = { host: "localhost", port: options.port, timeout: 5000 };
if (options.caFile) socket.tls = { ca: readFileSync(options.caFile), servername: "localhost" };
const security = options.sharedKey && {
  clientHostname: "node-client",
  sharedKey: options.sharedKey,
  username: options.username,
  password: options.password,
};
const client = new FluentClient("interop", {
  eventMode: options.eventMode,
  socket,
  security,
  ack: { ackTimeout: 20000 },
  milliseconds: true,
  flushInterval: 10,
});
process.exitCode = 1; // what the event loop runs out with when the client has given up
client.socketOn("error", (error) => console.error(String(error)));

Promise.all(records.map((record) => client.emit("node", record)))
  .then(() => client.disconnect())
  .then(
    () => process.exit(0),
    (error) => {
      console.error(String(error));
      process.exit(1);
    },
  );
