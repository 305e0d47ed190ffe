package problem

import "slices"

// codes are all that the API answers with, the web server's and a node's refusals passed on among them. A test holds the
// sources and the OpenAPI document to it, another the Chinese.
var codes = []string{
	"account_disabled", "admin_only", "allowance", "bad_body", "bad_frame", "bad_json", "bad_request", "body_too_large",
	"busy", "client_gone", "code_invalid", "conflict", "email_taken", "exited", "gateway_away", "internal",
	"invalid_field", "key_exists", "last_admin", "lifetime_limit", "limit", "mail_unavailable", "method_not_allowed",
	"name_taken", "no_deadline", "no_such_image", "no_such_route", "no_websocket", "node_error", "node_offline",
	"node_online", "not_failed", "not_found", "not_running", "not_the_door", "nothing_to_change", "queue_unavailable",
	"refresh_invalid", "refresh_reused", "registration_closed", "restarting", "session_ended", "store_unavailable",
	"taken", "token_invalid", "too_many_attempts", "too_many_connections", "too_many_keys", "unauthenticated",
	"unknown_field", "username_taken", "wrong_credentials", "wrong_origin", "wrong_password",
}

// Codes lists every code there is, sorted.
func Codes() []string { return slices.Clone(codes) }
