//! Work that goes on to its end even if nobody waits for it any more.
//!
//! It runs where it is waited for, in the waiting task itself; a task of its own is made for it only when it is given up before
//! its end. So what nobody gives up, which is nearly all, costs no task and no wake of another.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

/// A future that is not given up with whoever waits for it.
pub struct Onward<F>(Option<Pin<Box<F>>>)
where
    F: Future + Send + 'static,
    F::Output: Send;

impl<F> Onward<F>
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    pub fn new(work: Pin<Box<F>>) -> Onward<F> {
        Onward(Some(work))
    }
}

impl<F> Future for Onward<F>
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        // Whoever asks again after the end has made a mistake, and waits for ever.
        let Some(work) = &mut self.0 else { return Poll::Pending };
        let output = ready!(work.as_mut().poll(cx));
        self.0 = None;
        Poll::Ready(output)
    }
}

impl<F> Drop for Onward<F>
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn drop(&mut self) {
        // Without a runtime the process is at its end, and so is the work.
        if let (Some(work), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(work);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn what_is_given_up_goes_on_and_what_ends_is_answered() {
        let (go, going) = oneshot::channel::<u32>();
        let (say, said) = oneshot::channel();
        let mut work = Onward::new(Box::pin(async move {
            let _ = say.send(going.await.unwrap_or_default() + 1);
        }));
        assert!((&mut work).now_or_never().is_none(), "it waits");
        drop(work);
        assert!(go.send(1).is_ok(), "somebody still waits for it");
        assert_eq!(said.await, Ok(2));
        assert_eq!(Onward::new(Box::pin(async { 3 })).await, 3);
    }
}
