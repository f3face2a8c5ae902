"""Who waits for which request, and on which terms?

One key is one request, however many ask for it: `waiters` knows them, `terms` is what they want
together, `twins` puts it together anew, `unsent` ends it for some of them or for all, `elsewhere`
follows it in another process.
"""
