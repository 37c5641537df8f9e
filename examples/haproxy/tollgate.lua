-- The action `lua.tollgate` of haproxy.cfg: asks tollgate about the request, and answers the client unless tollgate's
-- answer is 200. Its argument, `refuse` or `admit`, says what happens when tollgate does not answer.

-- The frontend `auth` of haproxy.cfg. No timeout is set here: the backend of that frontend has the timeouts.
local AUTH = { url = "http://tollgate/authz/forward", dst = "abns@tollgate" }

-- These belong to the connection or to the body, and HAProxy writes its own.
local NOT_PASSED_ON = {
    ["connection"] = true,
    ["content-length"] = true,
    ["expect"] = true,
    ["host"] = true,
    ["keep-alive"] = true,
    ["proxy-connection"] = true,
    ["te"] = true,
    ["trailer"] = true,
    ["transfer-encoding"] = true,
    ["upgrade"] = true,
    ["x-tollgate-answered"] = true,
}

-- A copy of HAProxy's headers, whose values are numbered from 0, as lists from 1.
local function passed_on(headers)
    local copy = {}
    for name, values in pairs(headers) do
        if not NOT_PASSED_ON[name] then
            local list = {}
            for n = 0, #values do
                list[#list + 1] = values[n]
            end
            copy[name] = list
        end
    end
    return copy
end

-- The headers of the auth request: those of the client, with X-Forwarded-* replaced. The URI is path and query, even
-- when the client sent an absolute URI. `OPTIONS *` and CONNECT have no path, and tollgate refuses a
-- request without one.
local function auth_headers(txn)
    local headers = passed_on(txn.http:req_get_headers())
    headers["x-forwarded-for"] = { txn.sf:src() }
    headers["x-forwarded-method"] = { txn.sf:method() }
    headers["x-forwarded-uri"] = { txn.sf:pathq() }
    headers["x-forwarded-host"] = { txn.sf:req_hdr("host") }
    return headers
end

local function first(headers, name)
    return headers[name] and headers[name][0]
end

local function ask(txn, when_unanswered)
    local answer = core.httpclient():get({ url = AUTH.url, dst = AUTH.dst, headers = auth_headers(txn) })
    local headers = answer.headers or {}
    if not first(headers, "x-tollgate-answered") then
        if when_unanswered == "admit" then
            return
        end
        local slow = answer.status == 504
        local status = slow and 504 or 503
        txn:done(txn:reply({
            status = status,
            headers = { ["content-type"] = { "text/plain" } },
            body = slow and "the rate limit service is slow\n" or "the rate limit service is down\n",
        }))
    elseif answer.status == 200 then
        txn:set_var("txn.tollgate_limit", first(headers, "x-ratelimit-limit"))
        txn:set_var("txn.tollgate_remaining", first(headers, "x-ratelimit-remaining"))
        txn:set_var("txn.tollgate_reset", first(headers, "x-ratelimit-reset"))
    else
        txn:done(txn:reply({ status = answer.status, headers = passed_on(headers), body = answer.body }))
    end
end

core.register_action("tollgate", { "http-req" }, ask, 1)
