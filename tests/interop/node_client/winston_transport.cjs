// winston with the transport of fluent-logger, as the fleet's Node services log: sends the JSON lines of standard input and ends when
// every one has been acknowledged. Argument: JSON with port, and for a secure listener sharedKey and caFile.
// Over TLS without acks: the library looks for an ack only once its write has called back, and over TLS ours is often there before.
const { readFileSync } = require("fs");
const winston = require("winston");
const fluent = require("fluent-logger");
const options = JSON.parse(process.argv[2]);
const records = readFileSync(0, "utf8").split("\n").filter(Boolean).map((line) => JSON.parse(line));

const Transport = fluent.support.winstonTransport();
const transport = new Transport("interop.winston", {
  host: "localhost",
  port: options.port,
  timeout: 5.0,
  requireAckResponse: !options.caFile,
  ackResponseTimeout: 20000,
  milliseconds: true,
  ...(options.sharedKey && { security: { clientHostname: "winston-client", sharedKey: options.sharedKey } }),
  ...(options.caFile && { tls: true, tlsOptions: { ca: readFileSync(options.caFile), servername: "localhost" } }),
});
process.exitCode = 1;
let left = records.length;
transport.on("logged", () => --left || transport.sender.end(null, null, () => (process.exitCode = 0)));
transport.on("error", (error) => {
  console.error(JSON.stringify(error));
  process.exit(1);
});
const logger = winston.createLogger({ level: "silly", transports: [transport] });
for (const record of records) logger.log(record);
