"""`scheduler.providers.simulated.server`, under the name by which programs start it."""

from __future__ import annotations

from scheduler.providers.simulated.server import (
    Service,
    main,
    print_url,
    running_server,
    serve_until_signal,
)

__all__ = ["Service", "main", "print_url", "running_server", "serve_until_signal"]

if __name__ == "__main__":
    raise SystemExit(main())
