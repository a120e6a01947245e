// The edge under PM2, beside the services whose logs it reads:  pm2 start deploy/pm2.config.cjs && pm2 save
module.exports = {
  apps: [
    {
      name: "emp-pipe-edge",
      script: "/opt/emp-pipe/bin/emp-pipe",
      args: ["edge", "--data-dir", "/workspace/emp-pipe"],
      interpreter: "none",
      exec_mode: "fork",
      autorestart: true,
      exp_backoff_restart_delay: 200,
      // Longer than its own time for a stop (shutdown.deadline_s), after which what is not delivered stays in the buffer.
      kill_timeout: 30000,
      // The rest comes from the environment that PM2 runs in: FLUENTD_HOST, FLUENTD_SHARED_KEY, DASH0_AUTH_TOKEN, …
    },
  ],
};
