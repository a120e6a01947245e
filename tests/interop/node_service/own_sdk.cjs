'use strict';
/* An application that sets the SDK up itself, before or after otel_node.cjs is loaded: own_sdk.cjs before|after FILE; prints what it exported. */
const { context, propagation, trace } = require('@opentelemetry/api');
const { logs } = require('@opentelemetry/api-logs');
const { NodeSDK, tracing, logs: sdkLogs } = require('@opentelemetry/sdk-node');

const [, , order, file] = process.argv;
const spans = new tracing.InMemorySpanExporter();
const records = new sdkLogs.InMemoryLogRecordExporter();
const sdk = new NodeSDK({
  spanProcessors: [new tracing.SimpleSpanProcessor(spans)],
  logRecordProcessors: [new sdkLogs.SimpleLogRecordProcessor({ exporter: records })],
  metricReaders: [],
});
const early = trace.getTracer('early'); // of before the SDK: a proxy

if (order === 'after') require(file);
sdk.start();
if (order === 'before') require(file);
if (order === 'twice') {
  require(file);
  delete require.cache[file];
  require(file);
}

const logger = logs.getLogger('own');
function inJob(value, run) {
  const baggage = propagation.createBaggage({ job_id: { value }, user_id: { value: 'not to be copied' } });
  context.with(propagation.setBaggage(context.active(), baggage), run);
}

inJob('job-1', () => {
  early.startActiveSpan('early', (span) => {
    logger.emit({ body: 'in job' });
    trace.getTracer('late').startActiveSpan('own id', { attributes: { job_id: 'its own' } }, (inner) => {
      logger.emit({ body: 'own id', attributes: { job_id: 'its own', n: 1 } });
      inner.end();
    });
    span.end();
  });
});
early.startActiveSpan('known to the span', { attributes: { job_id: 'job-2' } }, (span) => {
  early.startSpan('step').end();
  logger.emit({ body: 'by its span' });
  span.end();
});
inJob('x'.repeat(257), () => early.startSpan('too long').end());
early.startSpan('outside').end();
logger.emit({ body: 'outside' });
logger.emit({ body: 'given', context: propagation.setBaggage(context.active(), propagation.createBaggage({ job_id: { value: 'job-3' } })) });

setTimeout(() => {
  const told = (rows, name) => Object.fromEntries(rows.map((row) => [name(row), row.attributes]));
  const found = { spans: told(spans.getFinishedSpans(), (span) => span.name), logs: told(records.getFinishedLogRecords(), (record) => record.body) };
  console.log(JSON.stringify(found));
}, 50);
