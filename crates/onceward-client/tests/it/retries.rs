//! Beside other retry middlewares, which know nothing of keys.

use std::time::Duration;

use http::Extensions;
use onceward_client::Idempotent;
use reqwest::{Request, Response};
use reqwest_middleware::{ClientBuilder, Middleware, Next, Result};
use reqwest_retry::RetryTransientMiddleware;
use reqwest_retry::policies::ExponentialBackoff;

use crate::support::{Gateway, Lost, Road, Service};

fn eager() -> RetryTransientMiddleware<ExponentialBackoff> {
    let bounds = (Duration::from_millis(1), Duration::from_millis(2));
    RetryTransientMiddleware::new_with_policy(
        ExponentialBackoff::builder().retry_bounds(bounds.0, bounds.1).build_with_max_retries(5),
    )
}

/// Sends again whatever happened, with the same extensions, as those do that retry.
struct Stubborn;

#[async_trait::async_trait]
impl Middleware for Stubborn {
    async fn handle(&self, request: Request, extensions: &mut Extensions, next: Next<'_>) -> Result<Response> {
        for _ in 0..5 {
            let again = request.try_clone().expect("a body of bytes");
            if let Ok(response) = next.clone().run(again, extensions).await {
                return Ok(response);
            }
        }
        next.run(request, extensions).await
    }
}

#[tokio::test]
async fn whoever_sends_again_outside_of_it_sends_the_same_key() {
    let service = Service::start();
    let gateway = Gateway::before(service.address);
    let road = Road::to(gateway.address, 2, Lost::Whole);
    // Without patience of its own, so that each send comes from outside.
    let ours = Idempotent::default().deadline(Duration::ZERO).honoured();
    let client = ClientBuilder::new(reqwest::Client::new()).with(Stubborn).with(ours).build();
    let answer = client.post(format!("http://{}/orders", road.address)).body("tea").send().await.expect("an answer");
    assert_eq!((answer.status().as_u16(), service.orders(), road.posts()), (201, 1, 3));
}

#[tokio::test]
async fn outside_and_inside_of_another_retry_it_sends_one_key() {
    let bare = || ClientBuilder::new(reqwest::Client::new());
    // With no patience of its own, so that it is the other that sends again.
    let hasty = || Idempotent::default().deadline(Duration::from_millis(0));
    for (order, client) in [
        ("ours outside", bare().with(Idempotent::default()).with(eager()).build()),
        ("ours inside", bare().with(eager()).with(Idempotent::default()).build()),
        ("ours outside, hasty", bare().with(hasty()).with(eager()).build()),
        ("ours inside, hasty", bare().with(eager()).with(hasty().honoured()).build()),
    ] {
        let service = Service::start();
        let gateway = Gateway::before(service.address);
        let road = Road::to(gateway.address, 2, Lost::Whole);
        let answer = client.post(format!("http://{}/orders", road.address)).body("tea").send().await;
        // An error of ours is fatal to the other one; whatever happened, there is one order under one key.
        if let Ok(answer) = answer {
            assert_eq!(answer.status(), 201, "{order}");
        } else {
            assert!(order.ends_with("inside, hasty"), "{order}");
        }
        assert_eq!(service.by_key().into_values().collect::<Vec<_>>(), [1], "{order}");
    }
}

/// The naive way, so that the test above is seen to be able to fail.
#[tokio::test]
async fn another_retry_alone_makes_many_orders() {
    let service = Service::start();
    let gateway = Gateway::before(service.address);
    let road = Road::to(gateway.address, 2, Lost::Whole);
    let client = ClientBuilder::new(reqwest::Client::new()).with(eager()).build();
    let answer = client.post(format!("http://{}/orders", road.address)).body("tea").send().await.expect("an answer");
    assert_eq!((answer.status().as_u16(), service.orders()), (201, 3));
}
