//! ImageService: what images are here, fetching and removing them, and the file system they fill.

use crate::{Client, Error, channel::bounded, deadlines, v1};

fn spec(image: &str) -> v1::ImageSpec {
    v1::ImageSpec { image: image.into(), ..Default::default() }
}

impl Client {
    /// All images on the node.
    pub async fn list_images(&self) -> Result<Vec<v1::Image>, Error> {
        let request = v1::ListImagesRequest { filter: None };
        Ok(bounded("ListImages", deadlines::READ, self.images.clone().list_images(request)).await?.images)
    }

    /// One image by name or id, `None` if it is not here.
    pub async fn image_status(&self, image: &str) -> Result<Option<v1::Image>, Error> {
        let request = v1::ImageStatusRequest { image: Some(spec(image)), verbose: false };
        match bounded("ImageStatus", deadlines::READ, self.images.clone().image_status(request)).await {
            Ok(answer) => Ok(answer.image),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Fetches an image and returns the reference under which it now exists.
    pub async fn pull_image(&self, image: &str, auth: Option<v1::AuthConfig>, sandbox_config: Option<v1::PodSandboxConfig>) -> Result<String, Error> {
        let request = v1::PullImageRequest { image: Some(spec(image)), auth, sandbox_config };
        Ok(bounded("PullImage", deadlines::PULL, self.images.clone().pull_image(request)).await?.image_ref)
    }

    /// Removes an image. Gone is done.
    pub async fn remove_image(&self, image: &str) -> Result<(), Error> {
        let request = v1::RemoveImageRequest { image: Some(spec(image)) };
        match bounded("RemoveImage", deadlines::CHANGE, self.images.clone().remove_image(request)).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// The file systems that hold images.
    pub async fn image_filesystems(&self) -> Result<Vec<v1::FilesystemUsage>, Error> {
        let request = v1::ImageFsInfoRequest {};
        Ok(bounded("ImageFsInfo", deadlines::READ, self.images.clone().image_fs_info(request)).await?.image_filesystems)
    }
}
