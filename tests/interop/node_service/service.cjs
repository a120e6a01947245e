'use strict';
/*
 * Two ordinary services in Node: one calls the other over HTTP inside a job. The same as tests/support/service_app.py.
 *
 *   service.cjs serve          prints its port, answers one request, ends
 *   service.cjs call URL JOB   calls it within a span, the job in the baggage
 *   service.cjs wait           makes a span, prints "ready" and waits to be stopped
 *   service.cjs decide         the same, and decides itself what a signal means: it ends with 3, a little later
 */
const http = require('node:http');
const { SpanStatusCode, context, metrics, propagation, trace } = require('@opentelemetry/api');
const winston = require('winston');

const logger = winston.createLogger({ transports: [new winston.transports.Console({ stderrLevels: ['warn', 'info'] })] });
const tracer = trace.getTracer('service');

function serve() {
  const server = http.createServer((request, response) => {
    tracer.startActiveSpan('render', (span) => {
      logger.warn(`rendering ${request.url}`);
      if (request.url.includes('fail')) span.setStatus({ code: SpanStatusCode.ERROR, message: 'out of memory' });
      metrics.getMeter('service').createCounter('renders').add(1);
      span.end();
      response.end('done');
      server.close();
    });
  });
  server.keepAliveTimeout = 1;
  server.listen(0, '127.0.0.1', () => console.log(server.address().port));
}

function call(url, job) {
  const baggage = propagation.createBaggage({ job_id: { value: job }, user_id: { value: 'not to be copied' } });
  context.with(propagation.setBaggage(context.active(), baggage), () => {
    tracer.startActiveSpan('submit', (span) => {
      logger.warn('submitting');
      http.get(url, { agent: false }, (answer) => {
        answer.on('data', (data) => console.log(String(data)));
        answer.on('end', () => span.end());
      });
    });
  });
  tracer.startActiveSpan('idle', (span) => {
    logger.warn('no job');
    span.end();
  });
}

function wait() {
  tracer.startActiveSpan('waiting', (span) => span.end());
  console.log('ready');
  setInterval(() => {}, 1000);
}

function decide() {
  for (const signal of ['SIGTERM', 'SIGINT']) process.on(signal, () => setTimeout(() => process.exit(3), 200));
  wait();
}

({ serve, call, wait, decide })[process.argv[2]](...process.argv.slice(3));
