-- wrk's script: POSTs one file of a folder after the other, over and over; ends with a line of JSON.
-- wrk … URL -- FOLDER CONTENT_TYPE
local requests, at = {}, 0

function init(args)
  local number = 0
  while true do
    local file = io.open(string.format("%s/%03d", args[1], number), "rb")
    if not file then break end
    requests[#requests + 1] = wrk.format("POST", nil, {["Content-Type"] = args[2]}, file:read("*a"))
    file:close()
    number = number + 1
  end
end

function request()
  at = at % #requests + 1
  return requests[at]
end

function done(summary, latency, _)
  local failed = summary.errors
  print(string.format(
    '\n{"answers": %d, "seconds": %f, "p50_ms": %f, "p99_ms": %f, "refused": %d, "broken": %d}',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    failed.status, failed.connect + failed.read + failed.write + failed.timeout))
end
