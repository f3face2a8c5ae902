"""What does one see of a store in a browser, and what may one change there?

`burn` (how a budget is being used up) and `figures` (what is shown) are pure, `desk` reads and changes
the store, `day` and `forecast` tell what takes longer to find out, `guard` lets in whom it may, `feed` tells all that look when
something changed, `site` is the application. The page itself is in `static`.
"""

from scheduler.server.page.desk import Desk
from scheduler.server.page.guard import Keys
from scheduler.server.page.site import PREFIX, page_app, page_routes

__all__ = ["PREFIX", "Desk", "Keys", "page_app", "page_routes"]
