"""What is told of requests and answers: metrics, traces, logs, the audit log."""
