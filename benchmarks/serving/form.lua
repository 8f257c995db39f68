-- wrk: one form per request; the last line of the output is read by client.py.
local file = io.open(os.getenv("WRK_BODY"), "rb")
wrk.method = "POST"
wrk.body = file:read("*a")
wrk.headers["Content-Type"] = os.getenv("WRK_CONTENT_TYPE")

done = function(summary, latency)
  local e = summary.errors
  local errors = e.connect + e.read + e.write + e.status + e.timeout
  io.write(string.format("RESULT %d %d %d %f %f\n", summary.requests, summary.duration, errors,
    latency:percentile(50), latency:percentile(99)))
end
