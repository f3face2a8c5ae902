"""Temporary."""

from scheduler.errors import PriceUnknown
from scheduler.request import Quote


class _T:
    def __init__(self, book):
        self.book = book

    def _rate(self, model):
        if model not in self.book.own:
            raise PriceUnknown(model)
        return [int(float(x) * 1000) for x in self.book.own[model].split("/")[:2]]

    def quote(self, r):
        i, o = self._rate(r.model)
        n = len(str(r.body))
        m = r.body.get("max_tokens", 300)
        return Quote(n * i + m * o, n * i // 4 + m * o // 2, n + m)

    def cost_nusd(self, r, a):
        if a.cost_nusd is not None:
            return a.cost_nusd
        if a.usage is None:
            return None
        i, o = self._rate(r.model)
        return a.usage.input_tokens * i + a.usage.output_tokens * o


class PriceBook:
    def __init__(self, own=None, **kw):
        self.own = dict(own or {})

    def set(self, m, p):
        self.own[m] = p

    def tariff(self, src):
        return _T(self)


def with_output_cap(r, n):
    return r
