"""FCM HTTP v1 through firebase-admin, its own retries switched off (it would sleep through a Retry-After), one outcome value per target."""

from __future__ import annotations

from typing import Any

from heliograph.effects import Notify
from heliograph.push import TITLES, Outcome, Target, payload

TIMEOUT_S = 5


class Fcm:
    def __init__(self, service_account: dict[str, Any], fcm_url: str) -> None:
        """`fcm_url` is FCM's base URL. The two private names used here are pinned by a contract test."""
        import firebase_admin
        from firebase_admin import credentials, messaging
        from requests.adapters import HTTPAdapter

        self._messaging: Any = messaging
        project_id = service_account["project_id"]
        self._app = firebase_admin.initialize_app(
            credentials.Certificate(service_account), {"projectId": project_id, "httpTimeout": TIMEOUT_S}, name=f"heliograph-{project_id}-{id(self)}"
        )
        service = messaging._get_messaging_service(self._app)
        service._fcm_url = f"{fcm_url.rstrip('/')}/v1/projects/{project_id}/messages:send"
        service._client.session.mount(fcm_url, HTTPAdapter(max_retries=0))

    def send(self, notify: Notify, target: Target, now_ms: int) -> Outcome:
        """One push to one target. The notification id is the collapse key, so that a repeat replaces, not doubles."""
        from firebase_admin import exceptions

        m = self._messaging
        ttl_s = max(0, (notify.expires_at_ms - now_ms) // 1000)
        message = m.Message(
            data=payload(notify),
            notification=m.Notification(title=TITLES[notify.kind]),
            android=m.AndroidConfig(collapse_key=notify.notification_id, priority="high", ttl=ttl_s),
            apns=m.APNSConfig(headers={"apns-collapse-id": notify.notification_id, "apns-expiration": str(notify.expires_at_ms // 1000)}),
            **{target.kind: target.value},
        )
        try:
            return Outcome("delivered", m.send(message, app=self._app))
        except (m.UnregisteredError, m.SenderIdMismatchError) as error:
            return Outcome("target_dead", error.code)
        except exceptions.InvalidArgumentError as error:
            return Outcome("rejected", str(error))
        except m.QuotaExceededError as error:
            return Outcome("try_later", error.code, _retry_after_s(error) or 60.0)
        except (exceptions.NotFoundError, m.ThirdPartyAuthError, exceptions.PermissionDeniedError) as error:
            return Outcome("misconfigured", str(error))
        except exceptions.FirebaseError as error:
            return Outcome("try_later", error.code, _retry_after_s(error))


def _retry_after_s(error: Any) -> float | None:
    answer = getattr(error, "http_response", None)
    text = answer.headers.get("Retry-After", "") if answer is not None else ""
    return float(text) if text.isdecimal() else None
