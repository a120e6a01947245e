// winston with its own Http transport, by HTTP JSON: sends the JSON lines of standard input and ends when each request was answered with 200.
// Argument: JSON with port, and where they are wanted token and batchCount (so many records in a request).
const { readFileSync } = require("fs");
const winston = require("winston");
const options = JSON.parse(process.argv[2]);
const records = readFileSync(0, "utf8").split("\n").filter(Boolean).map((line) => JSON.parse(line));

const transport = new winston.transports.Http({
  host: "localhost",
  port: options.port,
  path: "/interop/winston",
  ...(options.token && { auth: { bearer: options.token } }),
  ...(options.batchCount && { batch: true, batchCount: options.batchCount, batchInterval: 60000 }),
});
process.exitCode = 1;
let left = records.length / (options.batchCount || 1);
transport.on("logged", () => --left || ((process.exitCode = 0), process.exit()));
for (const event of ["warn", "error"])
  transport.on(event, (error) => {
    console.error(String(error));
    process.exit(1);
  });
const logger = winston.createLogger({ level: "silly", format: winston.format.json(), transports: [transport] });
for (const record of records) logger.log(record);
