"""An OpenAI-shaped client with a cost tracking budget; no SDK is needed.

You should see:

    Cost tracking budget exceeded: current usage 38.7% of limit 0.00005 USD
    spent 0.00001935 of $0.00005
    raised to $100: more and no less
"""

import scheduler

MESSAGES = [{"role": "user", "content": "Hello"}]

# A real one: scheduler.Client(api_key=os.environ["OPENAI_API_KEY"], cost_tracking_budget=100).
# Without on_exceeded="raise" it waits instead: until the budget resets, or is raised.
with scheduler.Client(
    provider=scheduler.Simulated(), cost_tracking_budget=0.00005, on_exceeded="raise"
) as client:
    try:
        while True:
            client.chat.completions.create(model="sim-small", messages=MESSAGES, max_tokens=30)
    except scheduler.BudgetExceeded as error:
        print(str(error).partition(" (")[0])
    print(f"spent {client.current_cost.normalize():f} of {client.cost_tracking_budget}")

    client.cost_tracking_budget = 100
    answer = client.chat.completions.create(model="sim-small", messages=MESSAGES, max_tokens=4)
    print(f"raised to {client.cost_tracking_budget}: {answer.choices[0].message.content}")
